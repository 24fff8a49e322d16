"""Evaluate with the COCO metric: ppdet-lite eval -c CONFIG -o weights=PATH [--report DIR]

--model DIR|FILE.onnx evaluates an exported model, and --model zoo:NAME published weights, for which -c is optional;
--results FILE scores existing results, and --compare A B compares two: with --annotations, no config is needed.
"""

from pathlib import Path

from ppdet_lite.core import cli, log, runtime


def main() -> None:
    """Parse the arguments and run the command."""
    parser = cli.config_parser(__doc__, required=False)
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--model", metavar="PATH", help="evaluate this exported model, or published weights: zoo:NAME")
    given.add_argument("--results", metavar="FILE", type=Path, help="score this bbox.json; metrics.json goes beside it")
    given.add_argument("--compare", metavar=("A", "B"), type=Path, nargs=2, help="two results files or run folders")
    cli.add_runtime_argument(parser)
    parser.add_argument("--annotations", metavar="FILE", type=Path, help="instead of -c: the COCO file of the results")
    parser.add_argument("--images", metavar="DIR", type=Path, help="its images, if they are not near it")
    parser.add_argument("--report", metavar="DIR", type=Path, help="also write an error analysis: HTML, JSON, CSV")
    parser.add_argument("--score", metavar="S", type=float, help="score threshold of the report (0.5)")
    args = parser.parse_args()
    if args.score is not None and (args.report is None or args.compare or not 0 <= args.score <= 1):
        parser.error("--score is a number from 0 to 1 and requires --report")
    from ppdet_lite.peers.zoo import is_zoo

    args.config = args.config or (args.model if is_zoo(args.model or "") else None)
    if (args.config is None) == (args.annotations is None) or (args.images and not args.annotations):
        parser.error("give -c CONFIG, --model zoo:NAME, or --annotations FILE [--images DIR]")
    if args.annotations and not (args.results or args.compare):
        parser.error("--annotations requires --results or --compare")
    with runtime.quiet_import():
        from paddle import distributed

        from ppdet_lite.assembly import own_data, setup
        from ppdet_lite.config.registry import build
        from ppdet_lite.deployment.detector import select_detector
        from ppdet_lite.evaluation.coco_backends import require_backend
        from ppdet_lite.evaluation.evaluate import RESULTS, evaluate, evaluate_results
        from ppdet_lite.evaluation.setting_warnings import warn_about_evaluation
        from ppdet_lite.reporting.compare import compare_runs
        from ppdet_lite.reporting.report import write_report
    log.configure(distributed.get_rank())
    files = args.config, args.annotations, args.images
    config = own_data.evaluation_config(*files, cli.overrides(args), not (args.model or args.results or args.compare))
    cli.handle_print_config(args, config)
    results, weights, options = args.results, None, build(config["eval"])
    detector = None if args.compare or results else select_detector(config, args.model, args.runtime)
    dataset = setup.build_dataset(config, "val", None if detector is None else detector.class_names)
    if detector is not None:
        setup.check_images(config, "val", dataset)
    setup.log_notes(dataset)
    if args.compare:
        compare_runs(dataset, args.compare, options.backend, args.report)
    elif detector is None:
        metrics = evaluate_results(dataset, results, options)
    else:
        results, weights = setup.run_folder(config, args.config) / RESULTS, detector.source
        warn_about_evaluation(options, build(config["data"]["augment"]), detector.preprocess, detector.postprocess)
        metrics = evaluate(detector, dataset, build(config["data"]["loader"]), results.parent, options)
    if args.report is not None and not args.compare and distributed.get_rank() == 0:
        facts = {"config": args.config, "weights": weights, "backend": str(require_backend(options.backend))}
        write_report(args.report, dataset, results, metrics, 0.5 if args.score is None else args.score, facts)
