"""Print what ppdet_lite runs on: versions, devices, cores, settings and a speed probe. Put it into every bug report.

--gpu computes operators and training steps on the GPU and on the CPU and compares them: see docs/gpu.md.
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
    parser.add_argument("--gpu", nargs="*", metavar="CHECK", help="make these checks of the GPU; without a name, all")
    checks = parser.parse_args().gpu
    if checks is None:
        print_report()
        return
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # float32 is float32: what differs is a fault
    with runtime.quiet_import():
        from ppdet_lite.benchmarks import device_check
    device_check.require_gpu()
    for line in device_check.check_device(checks, "gpu"):
        print(line, flush=True)


if __name__ == "__main__":
    cli.run(main)
