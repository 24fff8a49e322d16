"""Find faults in datasets: ppdet-lite check-data -c CONFIG | ANNOTATIONS IMAGES [--fix F] [--report DIR]"""

from pathlib import Path

from ppdet_lite.core import cli, log, runtime
from ppdet_lite.core.errors import UserError


def main() -> None:
    """Parse the arguments and run the command."""
    parser = cli.config_parser(__doc__, required=False)
    add = parser.add_argument
    add("paths", nargs="*", metavar="ANNOTATIONS IMAGES", help="a COCO file to check as a training set, its images")
    add("--fix", metavar="FILE", type=Path, help="write the annotations with all possible repairs to this file")
    add("--corners", action="store_true", help="with --fix: the boxes are x1, y1, x2, y2; convert them to COCO's")
    add("--report", metavar="DIR", type=Path, help="folder for a report: HTML, statistics as JSON, problems as CSV")
    args = parser.parse_args()
    if len(args.paths) != (0 if args.config else 2) or (args.override and not args.config):
        parser.error("give either -c CONFIG, with its -o, or ANNOTATIONS and IMAGES")
    if (args.fix and args.config) or (args.corners and not args.fix):
        parser.error("--fix requires ANNOTATIONS and IMAGES, and --corners requires --fix")
    log.configure()
    if args.config:
        with runtime.quiet_import():
            from ppdet_lite.assembly.check_data import check_config
            from ppdet_lite.assembly.setup import load_config
            from ppdet_lite.training.data_fit import warn_about_fit
        config = load_config(args.config, cli.overrides(args))
        cli.handle_print_config(args, config)
        check = check_config(config)
        if check.refusal is None:
            warn_about_fit(config)
    else:
        from ppdet_lite.data.checking.fix import check_file

        annotations, images = args.paths
        check = check_file(annotations, images, args.fix, args.corners)
    if args.report:
        with runtime.quiet_import():
            from ppdet_lite.reporting.data_page import write_report
        write_report(check, args.report)
    if check.refusal is not None:
        raise UserError(f"training would refuse: {check.refusal}")
    print("training would accept it")
