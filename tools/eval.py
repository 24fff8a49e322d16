"""Evaluate with the COCO metric: python tools/eval.py -c CONFIG -o weights=PATH [KEY=VALUE ...] [--results FILE]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ppdet_lite.core import cli, log, runtime


def main() -> None:
    parser = cli.config_parser(__doc__)
    parser.add_argument(
        "--results",
        metavar="FILE",
        type=Path,
        help="score these COCO results (a bbox.json) and run no model; metrics.json is written beside them",
    )
    args = parser.parse_args()
    with runtime.quiet_import():
        from paddle import distributed

        from ppdet_lite.assembly import setup
        from ppdet_lite.config.registry import build
        from ppdet_lite.evaluation.coco_metric import format_metrics, score_file
        from ppdet_lite.evaluation.evaluate import METRICS, evaluate
        from ppdet_lite.storage.files import write_json
    config = setup.load_config(args.config, cli.overrides(args))
    cli.stop_if_printed(args, config)
    log.configure(distributed.get_rank())
    if args.results is not None:
        dataset = setup.build_dataset(config, "val")
        setup.log_notes(dataset)
        metrics = score_file(dataset, args.results, config["eval"]["backend"])
        log.get_logger().info(format_metrics(metrics))
        write_json(args.results.with_name(METRICS), metrics)
        return
    setup.use_device(config)
    detector = setup.load_detector(config)
    dataset = setup.build_dataset(config, "val", detector.class_names)
    setup.check_images(config, "val", dataset)
    setup.log_notes(dataset)
    loader = build(config["data"]["loader"])
    folder = setup.run_folder(config, args.config)
    evaluate(detector.model, dataset, detector.preprocess, loader, folder, build(config["eval"]))


if __name__ == "__main__":
    cli.run(main)
