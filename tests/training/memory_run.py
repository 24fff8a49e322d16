"""Watch a process's memory while batches are loaded and steps are made; it must not grow.

python -m tests.training.memory_run loader|steps

Says the most that was resident early and late; the exit code is 1 where that grew by more than 5 %. A window of WINDOW
batches or steps is looked at before each mark, since memory goes up and down with what is written.
"""

import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from ppdet_lite.assembly.setup import build_dataset, load_config
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.data.loading.loader import TrainBatches
from ppdet_lite.training import loop
from tests.tiny_run import QUICKSTART, small_shapes

MARKS = {"loader": (200, 2000), "steps": (450, 900)}  # by the first mark, what is kept for each size of image is there
WINDOW = 40
ALLOWED = 1.05


def main(what: str) -> int:
    """Count batches or steps up to both marks."""
    early, late = MARKS[what]
    with tempfile.TemporaryDirectory() as folder:
        options = [*small_shapes(Path(folder) / "shapes", train=40, val=2), "data.augment.short_sides=[64, 80, 96]"]
        options += ["data.loader={batch_size: 2, threads: 2}", "train.evaluate_every=null", "train.log_every=1"]
        options += [f"train.length={late} iterations", f"train.checkpoint_every={WINDOW // 2} iterations"]
        config = load_config(QUICKSTART, options)
        found: dict[int, float] = {}

        def note(number: int) -> None:
            for mark in MARKS[what]:
                if mark - WINDOW < number <= mark:
                    found[mark] = max(found.get(mark, 0.0), _resident_mb())

        if what == "loader":
            _load(config, late, note)
        else:
            _train(config, Path(folder) / "run", note)
    growth = found[late] / found[early]
    print(f"{what}: {found[early]:.1f} MiB after {early}, {found[late]:.1f} MiB after {late}: {growth - 1:+.2%}")
    return int(growth > ALLOWED)


def _load(config: Config, count: int, note: Callable[[int], None]) -> None:
    dataset = build_dataset(config, "train")
    data = build(config["data"], train=dataset, val=None)
    stream = TrainBatches(dataset, data.preprocess, data.augment, data.loader, seed=0).iterate()
    for number in range(1, count + 1):
        next(stream)
        note(number)
    stream.close()


def _train(config: Config, folder: Path, note: Callable[[int], None]) -> None:
    """A whole run, whose checkpoints and curves are written on the way."""
    real = loop.Run.step

    def step(run: loop.Run, *rest: Any) -> None:
        real(run, *rest)
        note(run.state.iteration)

    with mock.patch.object(loop.Run, "step", step):
        loop.train(config, folder)


def _resident_mb() -> float:
    """As Linux tells it, in MiB, without the pages of libraries, which come and go as others need memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) / 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
