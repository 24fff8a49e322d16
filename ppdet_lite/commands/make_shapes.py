"""Generate the synthetic shapes dataset, unless it exists: ppdet-lite make-shapes"""

import argparse


def main() -> None:
    """Parse the command line and generate the dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output", help="folder to write; default: dataset/shapes, or dataset/shapes_VARIANT")
    parser.add_argument("--train", type=int, default=400, help="number of training images")
    parser.add_argument("--val", type=int, default=60, help="number of validation images")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--size", type=int, default=320, help="longest side of an image in pixels")
    variant = parser.add_mutually_exclusive_group()
    for name, text in {
        "deformed": "stretch the shapes up to 1:4, shear and bend them",
        "context": "beside each object, discs whose hue goes with its class in 95 of 100 training objects, not in val",
    }.items():
        variant.add_argument(f"--{name}", dest="variant", action="store_const", const=name, default="plain", help=text)
    args = parser.parse_args()
    from ppdet_lite.data.synthetic.shapes import generate

    output = args.output or ("dataset/shapes" if args.variant == "plain" else f"dataset/shapes_{args.variant}")
    written = generate(output, args.train, args.val, args.seed, args.size, args.variant)
    print(f"{output}: {f'{args.train} + {args.val} images written' if written else 'already exists'}")
