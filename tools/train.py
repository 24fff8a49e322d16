"""Train a detector: python tools/train.py -c CONFIG [-o KEY=VALUE ...] [--resume auto|DIR] [--eval]

A step whose loss or gradient was not finite is taken again with --replay DIR, where DIR is what it left.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.core import cli, log, runtime


def main() -> None:
    parser = cli.config_parser(__doc__, required=False)
    parser.add_argument("--resume", metavar="auto|DIR", help="go on from the run's latest checkpoint, or from this one")
    parser.add_argument("--eval", action="store_true", help="evaluate the final model in any case")
    parser.add_argument("--replay", metavar="DIR", type=Path, help="take the step again that left output/NAME/nan/DIR")
    args = parser.parse_args()
    if (args.config is None) == (args.replay is None):
        parser.error("one of -c CONFIG and --replay DIR is needed")
    path = args.config or args.replay / "config.yml"
    with runtime.quiet_import():
        from ppdet_lite.assembly.setup import load_config, run_folder
        from ppdet_lite.training.loop import train
        from ppdet_lite.training.nan_dump import replay
    config = load_config(path, cli.overrides(args))
    cli.stop_if_printed(args, config)
    if args.replay:
        log.configure()
        replay(config, args.replay)
    else:
        train(config, run_folder(config, path), args.resume, args.eval)


if __name__ == "__main__":
    cli.run(main)
