"""Comparison of two runs on the same dataset."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.evaluation.coco_backends import BackendName
from ppdet_lite.evaluation.coco_metric import SUMMARY, score_file
from ppdet_lite.evaluation.evaluate import RESULTS
from ppdet_lite.evaluation.results_file import read_results
from ppdet_lite.reporting import charts
from ppdet_lite.reporting.bootstrap import draw_selections, paired_bootstrap
from ppdet_lite.reporting.csv_text import csv_text
from ppdet_lite.reporting.errors import error_costs
from ppdet_lite.reporting.html import fill, training_curves
from ppdet_lite.reporting.matching import IOU_THRESHOLDS
from ppdet_lite.reporting.page import LABELS, mean_precision
from ppdet_lite.reporting.summary import Analysis, analyze, none_if_missing, object_counts
from ppdet_lite.storage.files import write_json, write_text

PAGE, NUMBERS, CLASSES = "comparison.html", "comparison.json", "comparison.csv"
SHOWN_THRESHOLDS = (0, 5)  # indices of IoU 0.5 and 0.75
MAX_CLASSES = 40  # in the chart
SELECTIONS, CONFIDENCE = 1000, 0.95


def compare_runs(
    dataset: CocoDataset,
    runs: Sequence[Path],
    backend: BackendName = "auto",
    folder: Path | None = None,
    selections: int = SELECTIONS,
) -> dict[str, Any]:
    """Compare two results files, or run folders that contain one: total AP, AP per class, and the costs of errors.

    Differences are the second run minus the first. Their confidence intervals come from a paired bootstrap over images
    with the given number of selections. Logs a table. If a folder is given, writes an HTML page, its numbers as JSON,
    and the classes as CSV into it. Returns the content of comparison.json.

    Raises UserError if a file does not contain results of the dataset, the dataset has fewer than two images, or the
    folder cannot be written.
    """
    paths = [run / RESULTS if run.is_dir() else run for run in runs]
    results = [read_results(path, dataset) for path in paths]
    metrics = [score_file(dataset, path, backend) for path in paths]
    analyses = [analyze(dataset, result) for result in results]
    if len(dataset) < 2:
        raise UserError(f"{dataset.file}: a comparison requires at least two images, not {len(dataset)}")
    truth = analyses[0].ground_truth
    overall, classes = paired_bootstrap(
        truth,
        [(analysis.detections, analysis.matches) for analysis in analyses],
        draw_selections(len(dataset), selections),
        dataset.num_classes,
        CONFIDENCE,
    )
    costs = [error_costs(run.detections, truth, run.errors, dataset.num_classes) for run in analyses]
    comparison: dict[str, Any] = {
        "runs": [str(path) for path in paths],
        "images": len(dataset),
        "selections": selections,
        "confidence": CONFIDENCE,
        "metrics": {name: [none_if_missing(run[name]) for run in metrics] for name in SUMMARY},
        "AP": overall._asdict(),
        "classes": [
            {"name": name, "objects": objects, **item._asdict()}
            for name, objects, item in zip(
                dataset.class_names, object_counts(truth, dataset.num_classes), classes, strict=True
            )
        ],
        "error_costs": {name: [run[name] for run in costs] for name in costs[0] if name != "AP50"},
    }
    get_logger().info("%s", format_comparison(comparison))
    if folder is not None:
        write_text(folder / PAGE, render(comparison, dataset, analyses))
        write_json(folder / NUMBERS, comparison)
        write_text(folder / CLASSES, csv_text(comparison["classes"]))
        get_logger().info("written: %s, %s and %s in %s", PAGE, NUMBERS, CLASSES, folder)
    return comparison


def render(comparison: dict[str, Any], dataset: CocoDataset, analyses: Sequence[Analysis]) -> str:
    """Return the comparison as a self-contained HTML page."""
    measured = [row for row in comparison["classes"] if row["low"] is not None]
    shown = sorted(measured, key=lambda row: -row["objects"])[:MAX_CLASSES]
    differences = np.array([[row[key] for key in ("difference", "low", "high")] for row in shown]).reshape(-1, 3)
    lines = {
        f"{letter}, IoU {IOU_THRESHOLDS[t]:.2f}": mean_precision(dataset, analysis, t)
        for t in SHOWN_THRESHOLDS
        for letter, analysis in zip("AB", analyses, strict=True)
    }
    curves = [(letter, training_curves(Path(run).parent)) for letter, run in zip("AB", comparison["runs"], strict=True)]
    return fill(
        "comparison.html",
        title="Comparison of two runs",
        comparison=comparison,
        facts=[*zip("AB", comparison["runs"], strict=True), ("data", dataset.file), ("images", len(dataset))],
        charts={
            "differences": charts.differences_chart([row["name"] for row in shown], differences),
            "precision": charts.precision_chart(lines),
            "shown": len(shown),
        },
        labels=LABELS,
        losses=[(letter, picture) for letter, picture in curves if picture is not None],
        max_cost=max(*itertools.chain(*comparison["error_costs"].values()), 1e-9),
    )


def format_comparison(comparison: dict[str, Any]) -> str:
    """Format the result of `compare_runs` as a text table, with -- where there is nothing to measure."""
    names = [item["name"] for item in comparison["classes"]]
    names += [*comparison["metrics"], *comparison["error_costs"]]
    width = max(map(len, names))
    heading = f"{comparison['confidence']:.0%} interval, {comparison['selections']} selections of images"

    def row(name: str, first: Any, second: Any, *interval: float | None) -> str:
        cells = [_cell(first), _cell(second), _signed(first, second)]
        if interval and interval[0] is not None:
            cells.append(f"[{interval[0]:+.3f}, {interval[1]:+.3f}]")
        return f"{name:<{width}}  " + "  ".join(f"{cell:>6}" for cell in cells)

    ap = comparison["AP"]
    return "\n".join(
        [
            *(f"{letter}: {path}" for letter, path in zip("AB", comparison["runs"], strict=True)),
            f"{'':<{width}}  {'A':>6}  {'B':>6}  {'B - A':>6}  {heading}",
            row("AP", ap["first"], ap["second"], ap["low"], ap["high"]),
            *(row(name, *pair) for name, pair in comparison["metrics"].items() if name != "AP"),
            "AP per class",
            *(row(c["name"], c["first"], c["second"], c["low"], c["high"]) for c in comparison["classes"]),
            "cost of errors in AP50",
            *(row(name, *pair) for name, pair in comparison["error_costs"].items()),
        ]
    )


def _cell(value: float | None) -> str:
    return "--" if value is None else f"{value:.3f}"


def _signed(first: float | None, second: float | None) -> str:
    return "--" if first is None or second is None else f"{second - first:+.3f}"
