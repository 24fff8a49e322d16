"""Export for deployment: ppdet-lite export-model -c CONFIG -o weights=PATH --output DIR [--format onnx [--int8]]

The exported model is written into DIR if its detections agree with those of the trained model. --format paddle is
PaddleDetection's deployment format, onnx is DIR/model.onnx. --int8 quantizes model.onnx and keeps it if its AP on the
validation data falls by no more than --int8-loss: see docs/inference.md.
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
    parser.add_argument("--int8", action="store_true", help="quantize model.onnx")
    parser.add_argument(
        "--calibrate", metavar="N", type=int, help="int8: number of training images to calibrate on (100)"
    )
    parser.add_argument(
        "--calibration-images", metavar="DIR", type=Path, help="int8: calibrate on these images instead"
    )
    parser.add_argument(
        "--int8-loss", metavar="AP", type=float, help="int8: the largest loss of AP, from 0 to 1 (0.01)"
    )
    args = parser.parse_args()
    if not args.print_config and (args.output is None or args.count < 1):
        parser.error("--output is required, and --count has to be at least 1")
    if not args.int8 and (args.calibrate, args.calibration_images, args.int8_loss) != (None, None, None):
        parser.error("--calibrate, --calibration-images and --int8-loss require --int8")
    count = 100 if args.calibrate is None else args.calibrate
    loss = 0.01 if args.int8_loss is None else args.int8_loss
    if args.int8 and (args.format != "onnx" or count < 1 or not 0 <= loss <= 1):
        parser.error("--int8 requires --format onnx, --calibrate at least 1 and --int8-loss from 0 to 1")
    os.environ.setdefault("GLOG_minloglevel", "2")  # tracing an addition causes warnings within Paddle
    with runtime.quiet_import():
        import paddle

        from ppdet_lite.assembly import setup, trained
        from ppdet_lite.deployment import export, onnx_export
        from ppdet_lite.evaluation.quality import quality_measure
    config = setup.load_config(args.config, cli.overrides(args))
    cli.handle_print_config(args, config)
    log.configure()
    paddle.set_device("cpu")
    images = export.choose_images(config, args.images, args.count)
    int8, model = None, trained.load_trained(config)
    if args.int8:
        onnx_export.require_packages(int8=True)
        from ppdet_lite.deployment.int8 import Int8

        calibration = export.calibration_images(config, args.calibration_images, count)
        quality, measure = quality_measure(
            config, export.Detector.from_trained(model), images if args.images and images else calibration
        )
        int8 = Int8(calibration, measure, quality, loss)
    export.export(model, args.output, images, args.format, int8)
