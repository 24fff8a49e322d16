"""The report on a finished run, about the checkpoint that evaluation and export use."""

import json
from pathlib import Path

from ppdet_lite.assembly.setup import build_dataset
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core.log import get_logger
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.evaluate import METRICS, RESULTS, evaluate
from ppdet_lite.reporting.report import write_report
from ppdet_lite.storage.checkpoint import checkpoint_meta, is_checkpoint, latest_checkpoint

REPORT = "report"  # folder in that of the run


def report_run(config: Config, folder: Path) -> Path:
    """Write a report on the best checkpoint of a run, or on the last one if there is no best; return its folder.

    If the last evaluation was of another checkpoint, this one is evaluated first, which replaces bbox.json and
    metrics.json. The run must have been evaluated at its end.
    """
    best, last = folder / "checkpoints/best", latest_checkpoint(folder / "checkpoints")
    chosen = best if is_checkpoint(best) or last is None else last
    dataset = build_dataset(config, "val", build_dataset(config, "train").class_names)
    if last is not None and checkpoint_meta(chosen)["iteration"] != checkpoint_meta(last)["iteration"]:
        get_logger().info("the best checkpoint is an earlier one; evaluating it again for the report")
        loader, options = build(config["data"]["loader"]), build(config["eval"])
        metrics = evaluate(Detector.load(folder, config["runtime"]["device"]), dataset, loader, folder, options)
    else:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    write_report(folder / REPORT, dataset, folder / RESULTS, metrics, facts={"weights": str(chosen)})
    return folder / REPORT
