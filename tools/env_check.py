"""Print the environment: versions, devices, cores, settings and a speed test. Add it to every bug report.

--gpu compares results of operators and training steps between the GPU and the CPU: see docs/gpu.md.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.benchmarks.environment import print_report
from ppdet_lite.core import cli, runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", nargs="*", metavar="CHECK", help="run these checks on the GPU, by default all")
    checks = parser.parse_args().gpu
    if checks is None:
        print_report()
        return
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # full float32 precision, so that every difference is an error
    with runtime.quiet_import():
        from ppdet_lite.benchmarks import device_check
    device_check.require_gpu()
    for line in device_check.check_device(checks, "gpu"):
        print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
