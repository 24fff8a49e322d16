"""The report as one page of HTML that needs nothing else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.images.drawing import class_colour
from ppdet_lite.reporting import charts
from ppdet_lite.reporting.averages import ranked_classes
from ppdet_lite.reporting.curves import RECALLS, Ranked, at_recalls, curve
from ppdet_lite.reporting.gallery import show_false_positives, show_misses, worst_false_positives, worst_misses
from ppdet_lite.reporting.html import fill
from ppdet_lite.reporting.matching import AT_HALF, IOU_THRESHOLDS
from ppdet_lite.reporting.summary import Analysis, object_counts, pooled

SHOWN_IOUS = (0, 5, 8)  # 0.5, 0.75, 0.9
MOST_CLASS_CHARTS = 100
LARGEST_TABLE = 20  # classes that are told one by one: in the confusion matrix, by their colours
MOST_CONFUSIONS = 12
MOST_IMAGES = 2000
PICTURES = 24  # in each gallery
MEANINGS = {
    "classification": "the right place, IoU from 0.5 on, but another class",
    "localisation": "the right class, but IoU from 0.1 to 0.5",
    "both": "another class, and IoU from 0.1 to 0.5",
    "duplicate": "the object is found already, by a better one",
    "background": "of nothing: IoU below 0.1 with every object",
    "missed": "an object that no detection, nor any of the errors above, stands for",
}
SECTIONS = {
    "explanation": "Why AP is near 0",
    "numbers": "COCO metric",
    "classes": "Classes",
    "curves": "Curves",
    "errors": "Errors",
    "confusion": "Confusion",
    "calibration": "Calibration",
    "size": "Size and crowding",
    "false-positives": "False positives",
    "misses": "Misses",
    "images": "Images",
}


def render(dataset: CocoDataset, analysis: Analysis, report: dict[str, Any], images: list[dict[str, Any]]) -> str:
    """The page: `report` is what `summarise` says, with `run` and `explanation`; `images` what `per_image` does."""
    score, few = report["score"], dataset.num_classes <= LARGEST_TABLE
    costs = [kind["cost"] for kind in report["errors"]["kinds"].values()]
    costs += [report["errors"]["false_positives"], report["errors"]["false_negatives"]]
    how = (
        f"Dashed: annotated. Whole lines: predicted from score {score:g} on. Black and white: the one meant. "
        "At most two of an image."
    )
    wrong = show_false_positives(dataset, analysis, worst_false_positives(analysis, PICTURES), score)
    missed = show_misses(dataset, analysis, worst_misses(analysis, score, PICTURES), score)
    worst_first = sorted(images, key=lambda row: -(row["false_positives"] + row["missed"]))
    return fill(
        "report.html",
        title=f"Detection report: {' + '.join(Path(file).name for file in dataset.file.split(' + '))}",
        report=report,
        sections=[item for item in SECTIONS.items() if item[0] != "explanation" or report["explanation"]],
        charts=_charts(dataset, analysis, report),
        confusions=_confusions(report["confusion"]),
        meanings=MEANINGS,
        most_cost=max(*costs, 1e-9),
        galleries=[
            ("false-positives", "Worst false positives", f"The most confident. {how}", wrong),
            ("misses", "Worst misses", f"First what is found at no score, the largest first. {how}", missed),
        ],
        legend=[(name, class_colour(k)) for k, name in enumerate(dataset.class_names)] if few else None,
        images=worst_first[:MOST_IMAGES],
        image_count=len(images),
    )


def curve_rows(dataset: CocoDataset, analysis: Analysis) -> list[dict[str, Any]]:
    """The precision of each class that has objects at COCO's recalls, and the scores there, at IoU 0.5."""
    rows = []
    for name, positives, ranked in _classes(dataset, analysis, AT_HALF):
        precision, scores = at_recalls(ranked, positives)
        for recall, value, score in zip(RECALLS.tolist(), precision.tolist(), scores.tolist(), strict=True):
            score = None if np.isnan(score) else score
            rows.append({"class": name, "recall": round(recall, 2), "precision": value, "score": score})
    return rows


def mean_precision(dataset: CocoDataset, analysis: Analysis, at: int) -> np.ndarray:
    """The mean over classes of precision [101] at COCO's recalls, at the IoU threshold of index `at`, or NaN."""
    precision = [at_recalls(ranked, n)[0] for _, n, ranked in _classes(dataset, analysis, at)]
    return np.mean(precision, axis=0) if precision else np.full(len(RECALLS), np.nan)


def _charts(dataset: CocoDataset, analysis: Analysis, report: dict[str, Any]) -> dict[str, Any]:
    lines = {f"IoU {IOU_THRESHOLDS[at]:.2f}": mean_precision(dataset, analysis, at) for at in SHOWN_IOUS}
    everything, objects = pooled(analysis), sum(object_counts(analysis.truth, dataset.num_classes))
    rates = curve(everything, objects) if objects and len(everything.scores) else None
    classes = list(_classes(dataset, analysis, AT_HALF))
    least = sorted((n for _, n, _ in classes), reverse=True)[:MOST_CLASS_CHARTS][-1:] or [0]
    rows = {row["name"]: row for row in report["classes"]}
    return {
        "precision": charts.precision_chart(lines),
        "rates": charts.rates_chart(rates, report["score"]),
        "classes": [
            (
                name,
                charts.class_chart(
                    at_recalls(ranked, n)[0], _point(rows[name]["best"]), _point(rows[name]["at_score"])
                ),
            )
            for name, n, ranked in [item for item in classes if item[1] >= least[0]][:MOST_CLASS_CHARTS]
        ],
        "calibration": charts.calibration_chart(report["calibration"]["bins"]),
        "confusion": (
            charts.confusion_chart(np.array(report["confusion"]["counts"]))
            if dataset.num_classes > LARGEST_TABLE
            else None
        ),
    }


def _classes(dataset: CocoDataset, analysis: Analysis, at: int) -> Iterator[tuple[str, int, Ranked]]:
    """Name, number of objects and detections of each class that has objects."""
    positives = object_counts(analysis.truth, dataset.num_classes)
    ranked = ranked_classes(analysis.found, analysis.matches, at, dataset.num_classes)
    return (item for item in zip(dataset.class_names, positives, ranked, strict=True) if item[1])


def _point(at: dict[str, Any] | None) -> tuple[float, float] | None:
    """Recall and precision, where both are there."""
    return None if at is None or at["precision"] is None or at["recall"] is None else (at["recall"], at["precision"])


def _confusions(confusion: dict[str, Any]) -> list[tuple[str, str, int]]:
    """The classes that are most often taken for another: (annotated, found as, how often)."""
    counts = np.array(confusion["counts"])[:-1, :-1]
    np.fill_diagonal(counts, 0)
    most = np.argsort(-counts, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = zip(*np.unravel_index(most, counts.shape), strict=True)
    names = confusion["names"]
    return [(names[i], names[j], int(counts[i, j])) for i, j in pairs if counts[i, j]]
