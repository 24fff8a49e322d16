"""Measure speed and memory: python tools/benchmark.py train|infer|data -c CONFIG [-o KEY=VALUE ...] [--json]

train  one step, split into data, forward, backward and optimizer
infer  detection by the model as it is trained and as it is exported, on the CPU
data   images per second that the loader makes
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.core import cli, log, runtime


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise ValueError
    return number


def height_x_width(text: str) -> tuple[int, int]:
    height, width = map(positive, text.split("x"))
    return height, width


def main() -> None:
    parser = cli.config_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("train", "infer", "data"))
    parser.add_argument("--size", type=height_x_width, metavar="HxW", help="image (train 320x427, infer 640x640)")
    parser.add_argument("--batch", type=positive, default=1, help="images at a time; not for data (1)")
    parser.add_argument("--iters", type=positive, default=10, help="times, after two that do not count (10)")
    parser.add_argument("--classes", type=positive, default=80, help="of a model without weights (80)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle warns of its own calls when it traces an addition
    with runtime.quiet_import():
        from ppdet_lite.engine import benchmark, setup
    config = setup.load_config(args.config, cli.overrides(args))
    if args.print_config:
        print(config.dump(origins=True), end="")
        return
    log.setup()
    setup.use_device(config)
    report = benchmark.run(args.what, config, args.size, args.batch, args.iters, args.classes)
    print(benchmark.format_report(report))
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
