"""Detect in images or videos: ppdet-lite infer -c CONFIG -o weights=PATH --input PATH --output DIR [--score 0.5]

Instead of -c, --model selects a run folder, an exported folder, an exported .onnx file, or published weights: zoo:NAME.
"""

import argparse
from pathlib import Path

from ppdet_lite.core import cli, log, runtime


def main() -> None:
    """Parse the arguments and run the command."""
    parser = cli.config_parser(__doc__, required=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", metavar="PATH", help="a run folder, an exported folder, an .onnx file, or zoo:NAME")
    cli.add_runtime_argument(parser)
    sources = "an image, a folder of images (with its subfolders), a video, or camera:0"
    parser.add_argument("--input", metavar="PATH", type=Path, help=sources)
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for visualizations and detections as JSON")
    parser.add_argument("--score", metavar="S", type=float, default=0.5, help="minimum score of the detections (0.5)")
    parser.add_argument("--side-by-side", metavar="FILE", type=Path, help="draw these COCO annotations on the left")
    args = parser.parse_args()
    if (args.config is None) == (args.model is None) or (args.config is None and args.override):
        parser.error("give either -c CONFIG with -o weights=..., or --model")
    if args.print_config and args.config is None:
        parser.error("--print-config requires -c")
    if not args.print_config and (args.input is None or args.output is None):
        parser.error("--input and --output are required")
    with runtime.quiet_import():
        from ppdet_lite.assembly.setup import load_config
        from ppdet_lite.config.registry import build
        from ppdet_lite.data.images.video import is_video
        from ppdet_lite.data.loading.loader import Loader
        from ppdet_lite.deployment.detector import select_detector
        from ppdet_lite.evaluation.infer import infer
        from ppdet_lite.evaluation.infer_video import infer_video
    config = None if args.config is None else load_config(args.config, cli.overrides(args))
    cli.handle_print_config(args, config)
    if is_video(args.input) and args.side_by_side is not None:
        parser.error("--side-by-side requires images")
    log.configure()
    detector = select_detector(config, args.model, args.runtime)
    loader = Loader() if config is None else build(config["data"]["loader"])
    if is_video(args.input):
        infer_video(detector, args.input, args.output, loader.batch_size, args.score)
    else:
        infer(detector, args.input, args.output, loader, args.score, args.side_by_side)
