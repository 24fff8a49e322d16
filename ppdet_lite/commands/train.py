"""Train a detector: ppdet-lite train -c CONFIG [-o KEY=VALUE ...] [--resume auto|DIR] [--eval]

--data PATH trains on a dataset without a config: COCO, YOLO, VOC or another known format is imported if necessary, and
a config for it is written beside the imported data; then it trains, evaluates and reports.
--replay DIR repeats a step whose loss or gradient was not finite, from the files that its run saved in DIR.
"""

import argparse
import shlex
from pathlib import Path

from ppdet_lite.core import cli, log, runtime

REPLAYED = ("model", "train.amp", "train.freeze", "runtime.device")  # settings that a replay uses


def main() -> None:
    """Parse the arguments and run the command."""
    parser = cli.config_parser(__doc__, required=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data", metavar="PATH", type=Path, help="a folder, data.yaml, JSON or CSV file to train on")
    starts = "initial weights with --data: a detector trained on COCO, downloaded once (zoo), or random ones"
    parser.add_argument("--start", choices=("zoo", "random"), help=starts)
    parser.add_argument("--resume", metavar="auto|DIR", help="resume from the run's latest checkpoint or from this one")
    parser.add_argument("--eval", action="store_true", help="evaluate the final model even if evaluate_every is null")
    parser.add_argument("--replay", metavar="DIR", type=Path, help="repeat the step in output/NAME/nan/iter_*")
    args = parser.parse_args()
    if [args.config, args.data, args.replay].count(None) != 2:
        parser.error("give one of -c CONFIG, --data PATH and --replay DIR")
    if args.start is not None and args.data is None:
        parser.error("--start requires --data; a config has its own pretrain_weights")
    if args.replay and (args.resume or args.eval):
        parser.error("--replay repeats one step: remove --resume and --eval")
    if args.replay:
        cli.require_effect(cli.overrides(args), REPLAYED, "--replay repeats a step up to its gradients")
    with runtime.quiet_import():
        from paddle import distributed

        from ppdet_lite.assembly.own_data import prepare_own_data, require_start
        from ppdet_lite.assembly.setup import load_config, run_folder
        from ppdet_lite.reporting.trained_run import report_run
        from ppdet_lite.training.loop import train
        from ppdet_lite.training.nan_dump import replay
    if args.data:
        if distributed.get_world_size() > 1:
            parser.error("--data is for one process: run import-data, then train with the config that it writes")
        log.configure()
        args.config = prepare_own_data(args.data, args.start or "zoo")
    path = args.config or args.replay / "config.yml"
    config = load_config(path, cli.overrides(args))
    cli.handle_print_config(args, config)
    if args.replay:
        log.configure()
        replay(config, args.replay)
        return
    folder = run_folder(config, path)
    if args.data:
        require_start(config, args.data)
    train(config, folder, args.resume, args.eval or args.data is not None)
    if args.data:
        report = report_run(config, folder)
        run = shlex.quote(str(folder))
        print(f"report: {report / 'report.html'}\nnext:")
        print(f"  ppdet-lite infer --model {run} --input photo.jpg --output predictions")
        print(f"  ppdet-lite export-model -c {run}/config.yml -o weights={run} --output {run}/export")
