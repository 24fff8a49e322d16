"""Kill a training run again and again, let it go on, and compare what it comes to with a run that was left alone.

python -m tests.training.kill_run [--kills 10] [--signal KILL|TERM] [--seed 0]

The run accumulates two batches a step, averages its weights, loads by two threads and writes a checkpoint after every
step. Of three kills one comes at any instant, the start included, one within the steps, one while a checkpoint is
written.
"""

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppdet_lite.storage.checkpoint import latest_checkpoint, load_checkpoint
from tests.tiny_run import QUICKSTART, small_shapes

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600  # seconds for whatever a run is waited for
STEPS = 3  # that a process makes at most, about


class Kill(NamedTuple):
    """An end of the process before its own."""

    writing: bool  # whether a checkpoint was left half written
    done: str  # the checkpoint that the next process goes on from


def main() -> int:
    """Tell of every kill, and whether the result is the same; the exit code is 1 where it is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    args = parser.parse_args()
    number = signal.Signals[f"SIG{args.signal}"]
    with tempfile.TemporaryDirectory() as folder:
        kills, differing = killed_against_straight(Path(folder), args.kills, number, args.seed)
    for i, kill in enumerate(kills, 1):
        print(f"kill {i:2}: {'a checkpoint half written, ' if kill.writing else ''}on from {kill.done}")
    result = f"{len(differing)} arrays differ: {', '.join(differing[:5])}" if differing else "the same bit for bit"
    print(f"{len(kills)} kills, {sum(kill.writing for kill in kills)} inside checkpoint writing: {result}")
    return int(bool(differing))


def killed_against_straight(
    folder: Path, kills: int, number: signal.Signals, seed: int
) -> tuple[list[Kill], list[str]]:
    """Make both runs below a folder; returns the kills, and the arrays of the last checkpoint that differ."""
    options = [*small_shapes(folder / "shapes", train=6, val=2), "data.loader.threads=2"]
    options += ["train.accumulate=2", "train.ema={decay: 0.9}", "train.evaluate_every=null", "train.log_every=1"]
    options += [f"train.length={STEPS * (kills + 1)} iterations", "train.checkpoint_every=1 iterations"]
    command = [sys.executable, str(ROOT / "tools/train.py"), "-c", str(QUICKSTART), "-o", *options]
    straight, killed = folder / "straight", folder / "killed"
    began = time.monotonic()
    subprocess.run([*command, f"output={straight}"], check=True, stdout=subprocess.DEVNULL)
    length = time.monotonic() - began
    rng, told = random.Random(seed), []
    checkpoints = killed / QUICKSTART.stem / "checkpoints"
    for i in range(kills):
        left = _half_written(checkpoints)
        process = subprocess.Popen([*command, f"output={killed}", "--resume", "auto"], stdout=subprocess.DEVNULL)
        far_enough = (checkpoints / f"iter_{STEPS * (i + 1):08d}").exists  # each process leaves steps to the next
        if i % 3 == 0:
            _wait(process, rng.uniform(0, length / 4), far_enough)
        else:
            _wait(process, PATIENCE, far_enough, partial(_is_writing, checkpoints, left))
            _wait(process, rng.uniform(0, length / (2 * kills) if i % 3 == 1 else 0.1), far_enough)
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself, with exit code {process.returncode}, before kill {i + 1}")
        process.send_signal(number)
        process.wait(PATIENCE)
        latest = latest_checkpoint(checkpoints)
        told.append(Kill(_is_writing(checkpoints, left), latest.name if latest else "the beginning"))
    subprocess.run([*command, f"output={killed}", "--resume", "auto"], check=True, stdout=subprocess.DEVNULL)
    return told, _differing(*(run / QUICKSTART.stem / "checkpoints" for run in (straight, killed)))


def _half_written(checkpoints: Path) -> set[tuple[str, int]]:
    """The checkpoints that are being written or were left so, each with the time at which it was begun."""
    found = set()
    for path in checkpoints.glob(".*.ckpt-partial"):
        with contextlib.suppress(FileNotFoundError):  # it is whole by now
            found.add((path.name, path.stat().st_ctime_ns))
    return found


def _is_writing(checkpoints: Path, left: set[tuple[str, int]]) -> bool:
    """Whether a checkpoint is being written; `left` are those that were left half written before."""
    return bool(_half_written(checkpoints) - left)


def _wait(process: subprocess.Popen, seconds: float, *reached: Callable[[], bool]) -> None:
    """Wait so long at most, or until something of what is named is reached."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline and not any(is_so() for is_so in reached):
        time.sleep(0.001)


def _differing(*folders: Path) -> list[str]:
    """The arrays, by group and name, that are not the same in the last checkpoints of two runs."""
    first, second = (
        {f"{group}/{name}": value for group, arrays in checkpoint.groups.items() for name, value in arrays.items()}
        for checkpoint in (load_checkpoint(latest_checkpoint(folder)) for folder in folders)
    )
    return [
        name
        for name in sorted(first.keys() | second.keys())
        if name not in first or name not in second or not np.array_equal(first[name], second[name])
    ]


if __name__ == "__main__":
    sys.exit(main())
