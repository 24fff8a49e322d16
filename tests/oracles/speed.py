"""A training step or a detection here and in torchvision, side by side on this machine's CPU.

    python -m venv TORCH && TORCH/bin/pip install torch torchvision
    python -m tests.oracles.speed --torch-python TORCH/bin/python [--cases r18_bn ...] [--rounds 3] [--steps 3]

Both build the same detector (`speed_cases.py`), each in a process of its own with the same number of threads, and take
turns: while one works, the other waits. A training step goes from uint8 pixels to updated weights. The ratio is that
of the medians over all turns; the peak memory is that of each process. `floor` is the time of 200 GFLOP, about what
R50-FPN's step has to compute, at the rate of a product of two 1536 x 1536 matrices in the same turns.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.runtime import cpu_info, usable_cores
from tests.oracles.speed_cases import CASES

ROOT = Path(__file__).resolve().parents[2]
PAUSE = 0.4  # seconds, in which the threads of the one that has finished fall asleep
FLOOR_GFLOP = 200.0


class Worker:
    """A process that takes steps of a case when it is told to, and sleeps otherwise."""

    def __init__(self, python: str, module: str, arguments: Sequence[str], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2"}
        command = [python, "-m", f"tests.oracles.{module}", *arguments]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._hear()  # built and warmed up

    def turn(self, steps: int) -> dict[str, Any]:
        """The `seconds` of that many steps, and the peak memory so far."""
        time.sleep(PAUSE)
        print(steps, file=self._process.stdin, flush=True)
        return self._hear()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _hear(self) -> dict[str, Any]:
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"{' '.join(self._process.args)} ended with {self._process.wait()}; its words are above")


def compare(case: str, torch_python: str, rounds: int, steps: int, threads: int) -> dict[str, Any]:
    """Medians, ratio and peaks of a case."""
    workers = {
        "ours" if way == "as trained" else f"ours {way}": Worker(sys.executable, "speed_ours", [case, way], threads)
        for way in CASES[case].ways
    }
    workers["torchvision"] = Worker(torch_python, "speed_torchvision", [case], threads)
    if CASES[case].bfloat16:
        workers["torchvision bfloat16"] = Worker(torch_python, "speed_torchvision", [case, "bfloat16"], threads)
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    peaks, gflops = {}, []
    for _ in range(rounds):
        for name, worker in workers.items():
            turn = worker.turn(steps)
            seconds[name] += turn["seconds"]
            peaks[name] = turn["peak_rss_mb"]
            gflops += [turn["gflops"]] if "gflops" in turn else []
    for worker in workers.values():
        worker.close()
    report: dict[str, Any] = {"case": case, "threads": threads, "gflops": float(np.median(gflops))}
    for name, values in seconds.items():
        report[name] = float(np.median(values))
        report[f"{name} range"] = [min(values), max(values)]
        report[f"{name} / torchvision"] = report[name] / float(np.median(seconds["torchvision"]))
        report[f"{name} peak_rss_mb"] = peaks[name]
    return report


def tell(report: dict[str, Any]) -> str:
    """A report as lines of text."""
    lines = [f"{report['case']}: {CASES[report['case']].told}"]
    for name in [key.removesuffix(" / torchvision") for key in report if key.endswith(" / torchvision")]:
        least, most = report[f"{name} range"]
        ratio = report[f"{name} / torchvision"]
        lines.append(f"  {name:<16} {report[name]:7.3f} s  ({least:.3f} to {most:.3f})  {ratio:.2f} of torchvision's")
    peaks = [report[f"{name} peak_rss_mb"] for name in ("ours", "torchvision")]
    lines.append("  peak memory      {:.0f} MiB, torchvision {:.0f} MiB: {:.2f}".format(*peaks, peaks[0] / peaks[1]))
    if CASES[report["case"]].has_floor:
        floor = FLOOR_GFLOP / report["gflops"]
        lines.append(
            f"  floor            {floor:7.3f} s at {report['gflops']:.0f} GFLOP/s; {report['ours'] / floor:.2f} of it"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--torch-python", required=True, metavar="FILE", help="Python of an environment with torchvision"
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (3)")
    parser.add_argument("--steps", type=int, default=3, help="steps in a turn (3)")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the reports there too")
    arguments = parser.parse_args()
    print(f"{cpu_info().get('model name', 'CPU')}, {arguments.threads} threads", flush=True)
    reports = []
    for case in arguments.cases:
        reports.append(compare(case, arguments.torch_python, arguments.rounds, arguments.steps, arguments.threads))
        print(tell(reports[-1]), flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
