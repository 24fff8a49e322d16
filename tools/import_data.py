"""Write annotations as COCO files: python tools/import_data.py --from voc|yolo|labelme|csv SRC --output DIR"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.core import cli, log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("source", metavar="SRC", type=Path, help="the data set's folder; of csv the file, of yolo also a data.yaml")
    add("--from", dest="form", required=True, choices=("voc", "yolo", "labelme", "csv"), help="the format of SRC")
    add("--output", required=True, metavar="DIR", type=Path, help="folder to write; it must be new or empty")
    add("--images", metavar="DIR", type=Path, help="where the images are, if not where the format has them")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--split", metavar="S/S", help="shares of train/val or train/val/test, such as 0.8/0.2, at random")
    how.add_argument(
        "--splits", metavar="FILE", type=Path, nargs="+", default=[], help="lists of images; FILE's name is the split's"
    )
    add("--seed", type=int, default=None, metavar="N", help="another seed draws other images with --split (0)")
    add("--transfer", choices=("copy", "link", "leave"), default="copy", help="what to do with the images (copy)")
    add("--classes", metavar="FILE", type=Path, help="the class names in their order, one on a line")
    add(
        "--difficult",
        choices=("crowd", "keep", "drop"),
        help="marked objects become crowd regions, neither trained nor counted (crowd); stay as others; are left out",
    )
    add(
        "--voc-origin",
        type=int,
        choices=(0, 1),
        help="0: a box is xmax - xmin wide (0); 1: pixels count from 1 and belong to it, as in the VOC challenges",
    )
    args = parser.parse_args()
    if args.seed is not None and (args.split is None or args.seed < 0):
        parser.error("--seed is 0 or more, and goes with --split")
    from ppdet_lite.data.importing.convert import import_data
    from ppdet_lite.data.importing.splits import parse_shares

    log.configure()
    options = {name: value for name, value in vars(args).items() if name not in ("split", "splits", "seed")}
    shares = None if args.split is None else parse_shares(args.split)
    sets = import_data(**options, shares=shares, lists=args.splits, seed=args.seed or 0)
    print("data:")
    for name, dataset in sets.items():
        print(f"  {name}: {{images: {dataset.images}, annotations: {dataset.file}}}")


if __name__ == "__main__":
    cli.run(main)
