"""Measure speed and memory: ppdet-lite benchmark train|infer|data -c CONFIG [-o KEY=VALUE ...] [--json], or ops

train  one training step, and its phases: data, forward, backward, optimizer
infer  detection with the model in Paddle, exported, and as ONNX in ONNX Runtime and OpenVINO, on the CPU
data   images per second of the loader, with --workers also of paddle.io.DataLoader
ops    the deformable operators, compared with Paddle's operators
"""

import argparse
import json
import os

from ppdet_lite.core import cli, log, runtime


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def height_x_width(text: str) -> tuple[int, int]:
    """Parse "480x640"."""
    height, width = map(positive, text.split("x"))
    return height, width


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True)
    names = ("train", "infer", "data")
    with_config = [commands.add_parser(name, parents=[cli.config_parser("")], add_help=False) for name in names]
    for command in with_config[:2]:
        command.add_argument("--size", type=height_x_width, metavar="HxW", help="image size (320x427; infer: 640x640)")
        command.add_argument("--batch", type=positive, default=1, help="batch size (1)")
        command.add_argument("--classes", type=positive, default=80, help="classes of a model without weights (80)")
    with_config[2].add_argument("--workers", type=positive, default=0, help="DataLoader processes to compare with (0)")
    for command in (*with_config, commands.add_parser("ops")):
        command.add_argument("--iters", type=positive, default=10, help="measurements, after 2 warm-up iterations (10)")
        command.add_argument("--json", action="store_true", help="print the report as JSON in the last line")
    args = parser.parse_args()
    os.environ.setdefault("GLOG_minloglevel", "2")  # tracing an addition causes warnings within Paddle
    with runtime.quiet_import():
        from ppdet_lite.assembly.setup import load_config
        from ppdet_lite.benchmarks import model
    config = None if args.name == "ops" else load_config(args.config, cli.overrides(args))
    cli.handle_print_config(args, config)
    log.configure()
    options = {key: value for key, value in vars(args).items() if key in ("size", "batch", "classes", "workers")}
    report = model.run(args.name, config, args.iters, **options)
    print(model.format_report(report))
    if args.json:
        print(json.dumps(report))
