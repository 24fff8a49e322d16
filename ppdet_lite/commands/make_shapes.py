"""Generate the synthetic shapes dataset, unless it exists: ppdet-lite make-shapes"""

import argparse


def main() -> None:
    """Parse the command line and generate the dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", default="dataset/shapes", help="folder to write")
    parser.add_argument("--train", type=int, default=400, help="number of training images")
    parser.add_argument("--val", type=int, default=60, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--size", type=int, default=320, help="longest side of an image in pixels")
    args = parser.parse_args()
    from ppdet_lite.data.synthetic.shapes import generate

    written = generate(args.output, args.train, args.val, args.seed, args.size)
    print(f"{args.output}: {f'{args.train} + {args.val} images written' if written else 'already exists'}")
