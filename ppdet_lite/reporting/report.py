"""The report on the correct and wrong detections of a detector: an HTML page, and its numbers as JSON and CSV."""

import time
from pathlib import Path
from typing import Any

from ppdet_lite import __version__
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.evaluation.results_file import read_results
from ppdet_lite.reporting.csv_text import csv_text
from ppdet_lite.reporting.explain import explain
from ppdet_lite.reporting.html import training_curves
from ppdet_lite.reporting.page import curve_rows, render
from ppdet_lite.reporting.summary import analyze, per_image, summarize
from ppdet_lite.storage.files import write_json, write_text

PAGE, NUMBERS, CLASSES, CURVES, IMAGES = "report.html", "report.json", "classes.csv", "curves.csv", "images.csv"


def write_report(
    folder: Path,
    dataset: CocoDataset,
    results: Path,
    metrics: dict[str, Any],
    score: float = 0.5,
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the report on a results file into a folder; return the content of report.json.

    metrics: the result of `score_file` for the same results.
    score: minimum score of the detections that count, for numbers that depend on one.
    facts: additional lines for the heading of the page, by name. The page shows the losses of the run that contains
        the fact `weights`, or else the results.

    Raises UserError if the results belong to another dataset or the folder cannot be written.
    """
    analysis = analyze(dataset, read_results(results, dataset))
    images = per_image(dataset, analysis, score)
    numbers = summarize(dataset, analysis, metrics, score)
    explanation = explain(dataset, analysis, numbers["metrics"]["AP"])
    report = {"run": {**(facts or {}), **_facts(dataset, results, metrics)}, "explanation": explanation, **numbers}
    write_json(folder / NUMBERS, report)
    write_text(folder / CLASSES, csv_text([_class_row(row) for row in report["classes"]]))
    write_text(folder / CURVES, csv_text(curve_rows(dataset, analysis)))
    write_text(folder / IMAGES, csv_text(images))
    losses = training_curves(Path(report["run"].get("weights") or results.parent))
    write_text(folder / PAGE, render(dataset, analysis, report, images, losses))
    for line in explanation:
        get_logger().warning("AP is near 0: %s", line)
    get_logger().info("report written: %s", folder / PAGE)
    return report


def _facts(dataset: CocoDataset, results: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "annotations": dataset.file,
        "image folder": None if dataset.images == Path() else str(dataset.images),  # Path() for a mixed dataset
        "results": str(results),
        "images": len(dataset),
        "detections": metrics["detections"],
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "ppdet_lite": __version__,
    }


def _class_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a class in classes.csv: best_f1_* at the score of the best F1, at_* at the chosen score."""
    keys = ("score", "precision", "recall", "f1", "true_positives", "false_positives", "missed")
    best, at_score = row["best"] or dict.fromkeys(keys), row["at_score"]
    return {
        **{key: row[key] for key in ("name", "objects", "detections", "AP", "AP50")},
        **{f"best_f1_{key}": best[key] for key in keys},
        **{f"at_{key}": at_score[key] for key in keys},
    }
