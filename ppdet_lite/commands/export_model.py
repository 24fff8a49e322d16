"""Export for deployment: ppdet-lite export-model -c CONFIG -o weights=PATH --output DIR [--format onnx]

The exported model is written into DIR if its detections agree with those of the trained model. --format paddle is
PaddleDetection's deployment format, onnx is DIR/model.onnx.
"""

import argparse
import os
from pathlib import Path

from ppdet_lite.core import cli, log, runtime


def main() -> None:
    """Parse the arguments and run the command."""
    parser = cli.config_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for the exported model")
    parser.add_argument("--format", choices=["paddle", "onnx", "both"], default="paddle", help="what to write (paddle)")
    parser.add_argument("--images", metavar="FILE|DIR", type=Path, help="images to compare on (those of data.val)")
    parser.add_argument("--count", metavar="N", type=int, default=8, help="number of images to compare (8)")
    args = parser.parse_args()
    if not args.print_config and (args.output is None or args.count < 1):
        parser.error("--output is required, and --count has to be at least 1")
    os.environ.setdefault("GLOG_minloglevel", "2")  # tracing an addition causes warnings within Paddle
    with runtime.quiet_import():
        import paddle

        from ppdet_lite.assembly import setup, trained
        from ppdet_lite.deployment.export import choose_images, export
    config = setup.load_config(args.config, cli.overrides(args))
    cli.handle_print_config(args, config)
    log.configure()
    paddle.set_device("cpu")
    images = choose_images(config, args.images, args.count)
    export(trained.load_trained(config), args.output, images, args.format)
