"""Train the detectors of an experiment, run by run."""

import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.experiments.definitions import SEEDS, Experiment, Variant

OUTPUT = Path("output/experiments")


class Run(NamedTuple):
    """One training with its final evaluation."""

    experiment: Experiment
    variant: Variant
    seed: int

    @property
    def config(self) -> str:
        """The config that it trains."""
        return self.variant.config or self.experiment.config

    @property
    def output(self) -> Path:
        """Where its run folder is created."""
        return OUTPUT / self.experiment.name / f"{self.variant.name}_{self.seed}"

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return self.output / Path(self.config).stem

    @property
    def arguments(self) -> list[str]:
        """The arguments of `ppdet-lite` that train it."""
        overrides = [*self.variant.overrides, f"runtime.seed={self.seed}", f"output={self.output}"]
        return ["train", "-c", self.config, "--resume", "auto", "--eval", "-o", *overrides]

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
    pool = ThreadPoolExecutor(jobs)
    try:
        list(pool.map(_train, [run for run in runs if not run.is_done]))
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C no other training starts


def _train(run: Run) -> None:
    """Train and evaluate in a process of its own; done.json gets its processor time, unless it continues a run."""
    print(f"ppdet-lite {shlex.join(run.arguments)}", flush=True)
    is_resumed = run.folder.exists()
    run.output.mkdir(parents=True, exist_ok=True)
    log = run.output / "output.txt"
    with log.open("w") as file:
        command = [sys.executable, "-m", "ppdet_lite", *run.arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{run.output}: the training failed:\n{log.read_text()[-2000:]}")
    seconds = round(usage.ru_utime + usage.ru_stime, 1)
    (run.folder / "done.json").write_text(json.dumps({} if is_resumed else {"cpu_seconds": seconds}))
    print(f"{run.output}: {seconds:.0f} s of processor time", flush=True)
