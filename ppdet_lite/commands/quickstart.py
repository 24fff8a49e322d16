"""Generate shapes, train on them, evaluate, export and predict: ppdet-lite quickstart"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

CONFIG = "quickstart/shapes_r18_fpn"
DATA = "dataset/shapes"


def main() -> None:
    """Run the steps one after the other, each as its own process; the first that fails ends the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("output"), metavar="DIR", help="folder for the run (output)"
    )
    output = parser.parse_args().output
    run = output / Path(CONFIG).name
    model = ["-c", CONFIG, "-o", f"output={output}"]
    trained = [*model, f"weights={run}"]
    for step in (
        ["make-shapes", "--output", DATA],
        ["train", *model, "--resume", "auto", "--eval"],
        ["export-model", *trained, "--output", run / "export"],
        ["infer", *trained, "--input", f"{DATA}/val", "--output", run / "predictions"],
    ):
        print(f"\n$ ppdet-lite {shlex.join(map(str, step))}", flush=True)
        code = subprocess.run([sys.executable, "-m", "ppdet_lite", *step]).returncode
        if code:
            sys.exit(code)
    print(f"AP: {run}/metrics.json   images: {run}/predictions   exported model: {run}/export")
