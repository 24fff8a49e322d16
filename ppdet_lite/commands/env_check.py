"""Print versions, devices, cores, settings and a speed test, for bug reports: ppdet-lite env-check [--gpu]

--gpu compares results of operators and training steps between the GPU and the CPU: see docs/gpu.md.
"""

import argparse
import os

from ppdet_lite.core import runtime


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", nargs="*", metavar="CHECK", help="run these checks on the GPU, by default all")
    checks = parser.parse_args().gpu
    if checks is None:
        from ppdet_lite.benchmarks.environment import print_report

        print_report()
        return
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # full float32 precision, so that every difference is an error
    with runtime.quiet_import():
        from ppdet_lite.benchmarks import device_check
    device_check.require_gpu()
    for line in device_check.check_device(checks, "gpu"):
        print(line, flush=True)
