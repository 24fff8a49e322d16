"""Train the detectors of an experiment, run by run."""

import json
import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.experiments.definitions import SEEDS, Experiment, Variant

HERE = Path(__file__).parent
OUTPUT = Path("output/experiments")


class Run(NamedTuple):
    """One training with its final evaluation."""

    experiment: Experiment
    variant: Variant
    seed: int

    @property
    def output(self) -> Path:
        """Where its run folder is created."""
        return OUTPUT / self.experiment.name / f"{self.variant.name}_{self.seed}"

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.output / Path(self.experiment.config).stem

    @property
    def arguments(self) -> list[str]:
        """The arguments of `ppdet-lite` that train it."""
        config = (HERE / self.experiment.config).relative_to(HERE.parents[1])
        overrides = [*self.variant.overrides, f"runtime.seed={self.seed}", f"output={self.output}"]
        return ["train", "-c", str(config), "--resume", "auto", "--eval", "-o", *overrides]

    @property
    def is_done(self) -> bool:
        """Whether it is trained and evaluated here."""
        return (self.folder / "done.json").is_file()


def runs_of(experiment: Experiment, seeds: tuple[int, ...] = SEEDS) -> list[Run]:
    """Return the runs of an experiment, the first seed of all variants first."""
    return [Run(experiment, variant, seed) for seed in seeds for variant in experiment.variants]


def train_all(runs: list[Run], jobs: int) -> None:
    """Train the runs that are not done, `jobs` at a time with one thread each.

    Sums of several threads differ in their last bits, so results are reproducible with one only.
    """
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(_train, [run for run in runs if not run.is_done]))


def _train(run: Run) -> None:
    print(f"ppdet-lite {shlex.join(run.arguments)}", flush=True)
    start = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ppdet_lite", *run.arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(f"{run.output}: {result.stderr or result.stdout}")
    seconds = time.monotonic() - start
    (run.folder / "done.json").write_text(json.dumps({"seconds": round(seconds, 1)}))
    print(f"{run.output}: {seconds:.0f} s", flush=True)
