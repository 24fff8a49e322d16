"""Draw sampling points: ppdet-lite visualize-offsets -c CONFIG -o weights=PATH --input IMG --output DIR

--split val measures a dataset instead: how far the filters of each deformable convolution sample by the size of the
objects (effective dilation), and how much of it lies outside of their boxes, into offsets.json and offsets.svg.
"""

import argparse
from pathlib import Path

from ppdet_lite.core import cli, log, runtime


def point(text: str) -> tuple[float, float]:
    """Parse "x,y"."""
    x, y = text.split(",")
    return float(x), float(y)


def main() -> None:
    """Parse the arguments and run the command."""
    parser = cli.config_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--input", metavar="IMG", type=Path, help="the image to draw on")
    parser.add_argument("--split", choices=("train", "val"), help="measure the images of this dataset of the config")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for the visualizations")
    parser.add_argument(
        "--points",
        metavar="X,Y",
        type=point,
        nargs="+",
        help="pixels of the image whose sampling positions are drawn (default: the centers of the best detections)",
    )
    parser.add_argument(
        "--stage",
        type=int,
        choices=(2, 3, 4, 5),
        help="stage whose last three deformable convolutions are drawn or measured together (default: the last one)",
    )
    args = parser.parse_args()
    if not args.print_config and ((args.input is None) == (args.split is None) or args.output is None):
        parser.error("give --output DIR, and one of --input IMG and --split val")
    if args.split and args.points:
        parser.error("--points requires --input")
    with runtime.quiet_import():
        from ppdet_lite.assembly import setup, trained
        from ppdet_lite.config.registry import build
        from ppdet_lite.evaluation.offsets import draw_offsets
        from ppdet_lite.reporting.offsets import report_offsets
    config = setup.load_config(args.config, cli.overrides(args))
    cli.handle_print_config(args, config)
    log.configure()
    setup.use_device(config)
    detector = trained.load_trained(config)
    if args.split:
        dataset = setup.build_dataset(config, args.split, detector.class_names)
        setup.check_images(config, args.split, dataset)
        report_offsets(detector, dataset, build(config["data"]["loader"]), args.output, args.stage)
    else:
        draw_offsets(detector, args.input, args.output, args.points, args.stage)
