"""Draw sampling points: ppdet-lite visualize-offsets -c CONFIG -o weights=PATH --input IMG --output DIR"""

from pathlib import Path

from ppdet_lite.core import cli, log, runtime


def point(text: str) -> tuple[float, float]:
    """Parse "x,y"."""
    x, y = text.split(",")
    return float(x), float(y)


def main() -> None:
    """Parse the arguments and run the command."""
    parser = cli.config_parser(__doc__)
    parser.add_argument("--input", metavar="IMG", type=Path, help="the image")
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
        help="stage whose last deformable convolutions are drawn (default: the last one)",
    )
    args = parser.parse_args()
    if not args.print_config and (args.input is None or args.output is None):
        parser.error("--input and --output are required")
    with runtime.quiet_import():
        from ppdet_lite.assembly import setup, trained
        from ppdet_lite.evaluation.offsets import draw_offsets
    config = setup.load_config(args.config, cli.overrides(args))
    cli.handle_print_config(args, config)
    log.configure()
    setup.use_device(config)
    draw_offsets(trained.load_trained(config), args.input, args.output, args.points, args.stage)
