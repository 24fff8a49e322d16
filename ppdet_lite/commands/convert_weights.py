"""Convert checkpoints of other projects: ppdet-lite convert-weights --from ppdet -c CONFIG SRC DST

--from  convert SRC, a file of another project, to DST, a run folder: evaluate it with -c DST/config.yml -o weights=DST
--to    convert SRC, weights of this project, to DST, a file for another project
"""

import argparse
import math
import sys
from pathlib import Path

from ppdet_lite.core import cli, log, runtime


def main() -> None:
    """Parse the arguments and run the command."""
    parser = cli.config_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument(
        "--from", dest="source", metavar="PROJECT", help="ppdet, torchvision, mmdet, mmdet-caffe or detectron2"
    )
    direction.add_argument("--to", dest="target", choices=["ppdet"], help="ppdet: a .pdparams file for PaddleDetection")
    parser.add_argument("--classes", metavar="FILE", type=Path, help="COCO annotations with the class names")
    parser.add_argument(
        "--bn-epsilon", metavar="E", type=float, help="epsilon of batch norms (1e-5); torchvision's COCO_V1 has 0"
    )
    parser.add_argument("src", metavar="SRC", type=Path, help="file or folder to read")
    parser.add_argument("dst", metavar="DST", type=Path, help="folder or file to write")
    args = parser.parse_args(cli.separate_overrides(sys.argv[1:]))
    if args.target and (args.classes or args.bn_epsilon is not None):
        parser.error("--classes and --bn-epsilon require --from")
    if args.bn_epsilon is not None and not 0 <= args.bn_epsilon < math.inf:
        parser.error("--bn-epsilon is a number of at least 0")
    with runtime.quiet_import():
        import paddle

        from ppdet_lite.assembly import conversion, setup
    log.configure()
    paddle.set_device("cpu")
    peer = conversion.checked_peer(args.source or args.target)
    config = setup.peer_config(args.config, peer, cli.overrides(args))
    cli.handle_print_config(args, config)
    if args.target:
        conversion.write_peer_weights(peer, config, args.src, args.dst)
    else:
        count = conversion.convert_file(peer, config, args.src, args.dst, args.classes, args.bn_epsilon)
        log.get_logger().info("%d arrays of %s converted into %s", count, args.src, args.dst)
        log.get_logger().info("evaluate it: ppdet-lite eval -c %s -o weights=%s", args.dst / "config.yml", args.dst)
