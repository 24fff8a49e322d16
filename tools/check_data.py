"""Tell what is wrong with data: python tools/check_data.py -c CONFIG | ANNOTATIONS IMAGES [--fix F] [--report DIR]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.core import cli, log, runtime
from ppdet_lite.core.errors import UserError


def main() -> None:
    parser = cli.config_parser(__doc__, required=False)
    add = parser.add_argument
    add("paths", nargs="*", metavar="ANNOTATIONS IMAGES", help="a COCO file and its image folder, as a training set")
    add("--fix", metavar="FILE", type=Path, help="write the annotations here, with what can be repaired repaired")
    add("--corners", action="store_true", help="with --fix: the boxes are x1, y1, x2, y2; write x, y, width, height")
    add("--report", metavar="DIR", type=Path, help="write a page, its numbers as JSON, and every fault as CSV here")
    args = parser.parse_args()
    if len(args.paths) != (0 if args.config else 2) or (args.override and not args.config):
        parser.error("give -c CONFIG, and its -o, or ANNOTATIONS and IMAGES")
    if (args.fix and args.config) or (args.corners and not args.fix):
        parser.error("--fix takes ANNOTATIONS and IMAGES, one file at a time, and --corners goes with it")
    log.configure()
    if args.config:
        with runtime.quiet_import():
            from ppdet_lite.assembly.check_data import check_config
            from ppdet_lite.assembly.setup import load_config
        config = load_config(args.config, cli.overrides(args))
        cli.stop_if_printed(args, config)
        found = check_config(config)
    else:
        from ppdet_lite.data.checking.fix import check_file

        found = check_file(*args.paths, args.fix, args.corners)
    if args.report:
        with runtime.quiet_import():
            from ppdet_lite.reporting.data_page import write_report
        write_report(found, args.report)
    if found.refusal is not None:
        raise UserError(f"training would refuse: {found.refusal}")
    print("training would accept it")


if __name__ == "__main__":
    cli.run(main)
