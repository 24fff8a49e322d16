"""Bring another project's checkpoint: python tools/convert_weights.py --from ppdet -c CONFIG SRC DST

--from  SRC, a file of theirs, becomes DST, a run's folder: evaluate it with -c DST/config.yml -o weights=DST
--to    SRC, weights of ours, becomes DST, a file of theirs
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.core import cli, log, runtime


def main() -> None:
    parser = cli.config_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--from", dest="source", metavar="PROJECT", help="ppdet, torchvision, mmdet, mmdet-caffe or detectron2"
    )
    way.add_argument("--to", dest="target", choices=["ppdet"], help="ppdet: a .pdparams that PaddleDetection loads")
    parser.add_argument("--classes", metavar="FILE", type=Path, help="COCO annotations with the classes' names")
    parser.add_argument(
        "--bn-epsilon", metavar="E", type=float, help="of their batch norms, if not 1e-5; torchvision's COCO_V1 has 0"
    )
    parser.add_argument("src", metavar="SRC", type=Path, help="what to read")
    parser.add_argument("dst", metavar="DST", type=Path, help="what to write")
    args = parser.parse_args()
    with runtime.quiet_import():
        import paddle

        from ppdet_lite.assembly import conversion
    log.configure()
    paddle.set_device("cpu")
    peer = conversion.known_peer(args.source or args.target)
    config = conversion.peer_config(args.config, peer, cli.overrides(args))
    cli.stop_if_printed(args, config)
    if args.target:
        conversion.write_peer_weights(peer, config, args.src, args.dst)
    else:
        conversion.convert_file(peer, config, args.src, args.dst, args.classes, args.bn_epsilon)


if __name__ == "__main__":
    cli.run(main)
