"""Train a detector: ppdet-lite train -c CONFIG [-o KEY=VALUE ...] [--resume auto|DIR] [--eval]

--replay DIR repeats a step whose loss or gradient was not finite, from the files that its run saved in DIR.
"""

from pathlib import Path

from ppdet_lite.core import cli, log, runtime


def main() -> None:
    """Parse the arguments and run the command."""
    parser = cli.config_parser(__doc__, required=False)
    parser.add_argument("--resume", metavar="auto|DIR", help="resume from the run's latest checkpoint or from this one")
    parser.add_argument("--eval", action="store_true", help="evaluate the final model even if evaluate_every is null")
    parser.add_argument("--replay", metavar="DIR", type=Path, help="repeat the step in output/NAME/nan/iter_*")
    args = parser.parse_args()
    if (args.config is None) == (args.replay is None):
        parser.error("give either -c CONFIG or --replay DIR")
    path = args.config or args.replay / "config.yml"
    with runtime.quiet_import():
        from ppdet_lite.assembly.setup import load_config, run_folder
        from ppdet_lite.training.loop import train
        from ppdet_lite.training.nan_dump import replay
    config = load_config(path, cli.overrides(args))
    cli.handle_print_config(args, config)
    if args.replay:
        log.configure()
        replay(config, args.replay)
    else:
        train(config, run_folder(config, path), args.resume, args.eval)
