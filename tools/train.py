"""Train a detector: python tools/train.py -c CONFIG [-o KEY=VALUE ...] [--resume auto|DIR] [--eval]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.core import cli, runtime


def main() -> None:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--resume", metavar="auto|DIR", help="go on from the run's latest checkpoint, or from this one")
    parser.add_argument("--eval", action="store_true", help="evaluate the final model in any case")
    args = parser.parse_args()
    with runtime.quiet_import():
        from ppdet_lite.assembly.setup import load_config, run_folder
        from ppdet_lite.training.loop import train
    config = load_config(args.config, cli.overrides(args))
    cli.stop_if_printed(args, config)
    train(config, run_folder(config, args.config), args.resume, args.eval)


if __name__ == "__main__":
    cli.run(main)
