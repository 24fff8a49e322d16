"""Convert annotations to COCO files: ppdet-lite import-data --from FORMAT SRC --output DIR"""

import argparse
from pathlib import Path

from ppdet_lite.core import log, runtime

FORMATS = ("voc", "yolo", "labelme", "cvat", "kitti", "openimages", "csv")


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("source", metavar="SRC", type=Path, help="folder of the dataset; csv: a file; yolo: a folder or a data.yaml")
    add("--from", dest="source_format", required=True, choices=FORMATS, help="format of SRC")
    add("--output", required=True, metavar="DIR", type=Path, help="folder to write, new or empty")
    add("--images", metavar="DIR", type=Path, help="image folder, if not the format's usual one")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--split", metavar="S/S", help="random split: fractions of train/val or train/val/test, 0.8/0.2")
    group.add_argument(
        "--splits", metavar="FILE", type=Path, nargs="+", default=[], help="lists of images, named after their splits"
    )
    add("--seed", type=int, default=None, metavar="N", help="seed of --split (0)")
    add("--transfer", choices=("copy", "link", "leave"), default="copy", help="what to do with images (copy)")
    add("--classes", metavar="FILE", type=Path, help="class names in order, one per line")
    add(
        "--difficult",
        choices=("crowd", "keep", "drop"),
        help="objects marked difficult: convert to crowd regions, which are ignored (crowd), keep as objects, drop",
    )
    add(
        "--voc-origin",
        type=int,
        choices=(0, 1),
        help="0: box width is xmax - xmin (0); 1: pixel indices start at 1 and are inclusive, as in the VOC challenges",
    )
    add("--skip-bad", action="store_true", help="leave out what cannot be read and list it in DIR/skipped.csv")
    args = parser.parse_args()
    if args.seed is not None and (args.split is None or args.seed < 0):
        parser.error("--seed is 0 or more and requires --split")
    with runtime.quiet_import():
        from ppdet_lite.assembly.own_data import starter_lines
    from ppdet_lite.data.importing.convert import import_data
    from ppdet_lite.data.importing.splits import parse_fractions

    log.configure()
    options = {name: value for name, value in vars(args).items() if name not in ("split", "splits", "seed")}
    fractions = None if args.split is None else parse_fractions(args.split)
    sets = import_data(**options, fractions=fractions, lists=args.splits, seed=args.seed or 0)
    print("data:")
    for name, dataset in sets.items():
        print(f"  {name}: {{images: {dataset.images}, annotations: {dataset.file}}}")
    print("\n".join(starter_lines(args.output, sets)))
