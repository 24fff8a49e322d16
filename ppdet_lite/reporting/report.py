"""A report of what a detector gets right and wrong: a page, and its numbers as JSON and CSV, in a folder."""

import time
from pathlib import Path
from typing import Any

from ppdet_lite import __version__
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.evaluation.results_file import read_results
from ppdet_lite.reporting.csv_text import csv_text
from ppdet_lite.reporting.explain import explain
from ppdet_lite.reporting.page import curve_rows, render
from ppdet_lite.reporting.summary import analyse, per_image, summarise
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
    """Tell what a results file gets right and wrong on a dataset, in files of a folder; return what is in report.json.

    metrics: what `score_file` says of the same. score: from which detections are taken where one score is needed.
    facts: what else is to be told about the run, by name.

    Raises UserError for results of another dataset and a folder that cannot be written.
    """
    analysis = analyse(dataset, read_results(results, dataset))
    images = per_image(dataset, analysis, score)
    numbers = summarise(dataset, analysis, metrics, score)
    why = explain(dataset, analysis, numbers["metrics"]["AP"])
    report = {"run": {**(facts or {}), **_facts(dataset, results, metrics)}, "explanation": why, **numbers}
    write_json(folder / NUMBERS, report)
    write_text(folder / CLASSES, csv_text([_class_row(row) for row in report["classes"]]))
    write_text(folder / CURVES, csv_text(curve_rows(dataset, analysis)))
    write_text(folder / IMAGES, csv_text(images))
    write_text(folder / PAGE, render(dataset, analysis, report, images))
    for line in why:
        get_logger().warning("AP is near 0: %s", line)
    get_logger().info("report written: %s", folder / PAGE)
    return report


def _facts(dataset: CocoDataset, results: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "annotations": dataset.file,
        "image folder": None if dataset.images == Path() else str(dataset.images),  # several are mixed
        "results": str(results),
        "images": len(dataset),
        "detections": metrics["detections"],
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "ppdet_lite": __version__,
    }


def _class_row(row: dict[str, Any]) -> dict[str, Any]:
    """One class on one line: best_f1_* at the score of the best F1, at_* at the chosen one."""
    keys = ("score", "precision", "recall", "f1", "true_positives", "false_positives", "missed")
    best, at = row["best"] or dict.fromkeys(keys), row["at_score"]
    return {
        **{key: row[key] for key in ("name", "objects", "detections", "AP", "AP50")},
        **{f"best_f1_{key}": best[key] for key in keys},
        **{f"at_{key}": at[key] for key in keys},
    }
