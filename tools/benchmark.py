"""Measure speed and memory: python tools/benchmark.py train|infer|data -c CONFIG [-o KEY=VALUE ...] [--json]

train  one step, split into data, forward, backward and optimizer
infer  detection by the model as it is trained and as it is exported
data   images per second that the loader makes
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.core import cli, log, runtime


def image_size(text: str) -> tuple[int, int]:
    """Height and width from "320x427"."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is no HEIGHTxWIDTH, such as 320x427")
    return int(height), int(width)


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def main() -> None:
    parser = cli.config_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("what", choices=("train", "infer", "data"))
    parser.add_argument("--size", type=image_size, metavar="HxW", help="of the images (train 320x427, infer 640x640)")
    parser.add_argument("--batch", type=count, default=1, help="images at a time (1); data takes the loader's")
    parser.add_argument("--iters", type=count, default=10, help="how often, after two that do not count (10)")
    parser.add_argument("--classes", type=count, default=80, help="of a model without weights (80)")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    os.environ.setdefault("GLOG_minloglevel", "2")  # tracing makes Paddle warn of its own calls
    with runtime.quiet_import():
        from ppdet_lite.engine import benchmark, setup
    config = setup.load_config(args.config, cli.overrides(args))
    if args.print_config:
        print(config.dump(origins=True), end="")
        return
    log.setup()
    setup.use_device(config)
    if args.what == "data":
        report = benchmark.bench_data(config, args.iters)
    else:
        bench, size = (
            (benchmark.bench_train, (320, 427)) if args.what == "train" else (benchmark.bench_infer, (640, 640))
        )
        report = bench(config, args.size or size, args.batch, args.iters, args.classes)
    print(benchmark.format_report(report))
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
