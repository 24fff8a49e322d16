"""Measure speed and memory: python tools/benchmark.py train|infer|data -c CONFIG [-o KEY=VALUE ...] [--json], or ops

train  one step, split into data, forward, backward and optimizer
infer  detection by the model as it is trained, as it is exported and as ONNX, on the CPU
data   images per second that the loader makes, on request beside those of paddle.io.DataLoader
ops    the deformable operators against Paddle's own
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    names = ("train", "infer", "data")
    with_config = [commands.add_parser(name, parents=[cli.config_parser("")], add_help=False) for name in names]
    for command in with_config[:2]:
        command.add_argument("--size", type=height_x_width, metavar="HxW", help="image (320x427; infer: 640x640)")
        command.add_argument("--batch", type=positive, default=1, help="images at a time (1)")
        command.add_argument("--classes", type=positive, default=80, help="of a model without weights (80)")
    with_config[2].add_argument("--workers", type=positive, default=0, help="of a DataLoader to compare with (none)")
    for command in (*with_config, commands.add_parser("ops")):
        command.add_argument("--iters", type=positive, default=10, help="times, after two that do not count (10)")
        command.add_argument("--json", action="store_true", help="end with one line of JSON")
    args = parser.parse_args()
    os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle warns of its own calls when it traces an addition
    with runtime.quiet_import():
        from ppdet_lite.assembly.setup import load_config
        from ppdet_lite.benchmarks import model
    config = None if args.what == "ops" else load_config(args.config, cli.overrides(args))
    cli.stop_if_printed(args, config)
    log.configure()
    options = {key: value for key, value in vars(args).items() if key in ("size", "batch", "classes", "workers")}
    report = model.run(args.what, config, args.iters, **options)
    print(model.format_report(report))
    if args.json:
        print(json.dumps(report))


if __name__ == "__main__":
    cli.run(main)
