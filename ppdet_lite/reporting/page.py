"""The report as one self-contained HTML page."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.images.drawing import class_color
from ppdet_lite.reporting import charts, gallery
from ppdet_lite.reporting.averages import ranked_classes
from ppdet_lite.reporting.curves import RECALLS, RankedDetections, curve, precision_at_recalls
from ppdet_lite.reporting.html import fill
from ppdet_lite.reporting.matching import IOU_50, IOU_THRESHOLDS
from ppdet_lite.reporting.summary import Analysis, object_counts, pooled

SHOWN_THRESHOLDS = (0, 5, 8)  # indices of IoU 0.5, 0.75 and 0.9
MAX_CLASS_CHARTS = 100
MAX_TABLE_CLASSES = 20  # with more, the confusion matrix becomes a chart and the galleries have no legend
MAX_CONFUSIONS = 12
MAX_IMAGES = 2000
GALLERY_SIZE, WORST_IMAGES = 24, 12  # pictures of mistakes in each gallery, and of whole images
MEANINGS = {
    "classification": "wrong class, correct location (IoU at least 0.5)",
    "localisation": "correct class, poor location (IoU 0.1 to 0.5)",
    "both": "wrong class and poor location (IoU 0.1 to 0.5)",
    "duplicate": "detection of an object that a detection with a higher score has found",
    "background": "detection without an object (IoU below 0.1 with all objects)",
    "missed": "object without a correct detection, classification error or localisation error, whatever the score",
}
LABELS = {"missed": "missed at any score"}  # in tables that do not depend on the chosen score
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
    "worst-images": "Worst images",
    "images": "Images",
    "training": "Training",
}


def render(
    dataset: CocoDataset,
    analysis: Analysis,
    report: dict[str, Any],
    images: list[dict[str, Any]],
    losses: str | None = None,
) -> str:
    """Return the page.

    report: the result of `summarize`, with the additional keys `run` and `explanation`.
    images: the result of `per_image`.
    losses: the URL of a picture of the losses during training, if it is known.
    """
    score, show_legend = report["score"], dataset.num_classes <= MAX_TABLE_CLASSES
    costs = [kind["cost"] for kind in report["errors"]["kinds"].values()]
    costs += [report["errors"]["false_positives"], report["errors"]["false_negatives"]]
    worst_first = sorted(enumerate(images), key=lambda item: -(item[1]["false_positives"] + item[1]["missed"]))
    galleries = _galleries(dataset, analysis, worst_first, score)
    links: dict[str, str] = {}  # the first picture of each file, preferably that of the whole image
    for id, _, _, mistakes in reversed(galleries):
        for number, mistake in enumerate(mistakes, start=1):
            if mistake.drawing:
                links.setdefault(mistake.file, f"{id}-{number}")
    return fill(
        "report.html",
        title=f"Detection report: {' + '.join(Path(file).name for file in dataset.file.split(' + '))}",
        report=report,
        sections=[
            (id, name)
            for id, name in SECTIONS.items()
            if {"explanation": report["explanation"], "training": losses}.get(id, True)
        ],
        charts=_charts(dataset, analysis, report),
        confusions=_confusions(report["confusion"]),
        meanings=MEANINGS,
        max_cost=max(*costs, 1e-9),
        labels=LABELS,
        galleries=galleries,
        links=links,
        losses=losses,
        legend=[(name, class_color(k)) for k, name in enumerate(dataset.class_names)] if show_legend else None,
        images=[row for _, row in worst_first[:MAX_IMAGES]],
        image_count=len(images),
    )


def _galleries(
    dataset: CocoDataset, analysis: Analysis, worst_first: list[tuple[int, dict[str, Any]]], score: float
) -> list[tuple[str, str, str, list[gallery.Mistake]]]:
    """Return the galleries: id, heading, text and pictures; worst_first: the images with their rows of the table."""
    lines = (
        "Boxes have the color of their class; dashed lines: annotations, solid lines: predictions with a score of at "
        f"least {score:g}. Black and white frame: the box in question. At most {gallery.MAX_PER_IMAGE} per image."
    )
    wrong = gallery.worst_false_positives(analysis, GALLERY_SIZE)
    missed = gallery.worst_misses(analysis, score, GALLERY_SIZE)
    worst = [i for i, row in worst_first[:WORST_IMAGES] if row["false_positives"] + row["missed"]]
    return [
        (
            "false-positives",
            "Worst false positives",
            f"Wrong detections with the highest scores. {lines}",
            gallery.show_false_positives(dataset, analysis, wrong, score),
        ),
        (
            "misses",
            "Worst misses",
            f"Objects without a correct detection with a score of at least {score:g}. Those that are found at no score "
            f"come first, sorted by size. {lines}",
            gallery.show_misses(dataset, analysis, missed, score),
        ),
        (
            "worst-images",
            "Images with the most mistakes",
            f"Only mistakes are drawn: missed objects (dashed) and wrong detections (solid) with a score of at least "
            f"{score:g}, in the color of their class.",
            gallery.show_images(dataset, analysis, worst, score),
        ),
    ]


def curve_rows(dataset: CocoDataset, analysis: Analysis) -> list[dict[str, Any]]:
    """Return precision and score at COCO's recalls, at IoU 0.5, for each class that has objects."""
    rows = []
    for name, positives, ranked in _classes(dataset, analysis, IOU_50):
        precision, scores = precision_at_recalls(ranked, positives)
        for recall, value, score in zip(RECALLS.tolist(), precision.tolist(), scores.tolist(), strict=True):
            score = None if np.isnan(score) else score
            rows.append({"class": name, "recall": round(recall, 2), "precision": value, "score": score})
    return rows


def mean_precision(dataset: CocoDataset, analysis: Analysis, t: int) -> np.ndarray:
    """Return the mean over classes of the precision [101] at COCO's recalls, at the t-th IoU threshold, or NaN."""
    precision = [precision_at_recalls(ranked, n)[0] for _, n, ranked in _classes(dataset, analysis, t)]
    return np.mean(precision, axis=0) if precision else np.full(len(RECALLS), np.nan)


def _charts(dataset: CocoDataset, analysis: Analysis, report: dict[str, Any]) -> dict[str, Any]:
    lines = {f"IoU {IOU_THRESHOLDS[t]:.2f}": mean_precision(dataset, analysis, t) for t in SHOWN_THRESHOLDS}
    all_classes, objects = pooled(analysis), sum(object_counts(analysis.ground_truth, dataset.num_classes))
    rates = curve(all_classes, objects) if objects and len(all_classes.scores) else None
    classes = list(_classes(dataset, analysis, IOU_50))
    min_objects = min(sorted((n for _, n, _ in classes), reverse=True)[:MAX_CLASS_CHARTS], default=0)
    rows = {row["name"]: row for row in report["classes"]}
    return {
        "precision": charts.precision_chart(lines),
        "rates": charts.rates_chart(rates, report["score"]),
        "classes": [
            (
                name,
                charts.class_chart(
                    precision_at_recalls(ranked, n)[0], _point(rows[name]["best"]), _point(rows[name]["at_score"])
                ),
            )
            for name, n, ranked in [item for item in classes if item[1] >= min_objects][:MAX_CLASS_CHARTS]
        ],
        "calibration": charts.calibration_chart(report["calibration"]["bins"]),
        "confusion": None
        if dataset.num_classes <= MAX_TABLE_CLASSES
        else charts.confusion_chart(np.array(report["confusion"]["counts"]), report["confusion"]["names"]),
    }


def _classes(dataset: CocoDataset, analysis: Analysis, t: int) -> Iterator[tuple[str, int, RankedDetections]]:
    """Yield name, number of objects and detections of each class that has objects."""
    positives = object_counts(analysis.ground_truth, dataset.num_classes)
    ranked = ranked_classes(analysis.detections, analysis.matches, t, dataset.num_classes)
    return (item for item in zip(dataset.class_names, positives, ranked, strict=True) if item[1])


def _point(rates: dict[str, Any] | None) -> tuple[float, float] | None:
    """Return (recall, precision), or None if one of them is undefined."""
    point = None if rates is None else (rates["recall"], rates["precision"])
    return None if point is None or None in point else point


def _confusions(confusion: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Return the most frequent confusions of classes: (annotated class, predicted class, count)."""
    counts = np.array(confusion["counts"])[:-1, :-1]
    np.fill_diagonal(counts, 0)
    largest = np.argsort(-counts, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = zip(*np.unravel_index(largest, counts.shape), strict=True)
    names = confusion["names"]
    return [(names[i], names[j], int(counts[i, j])) for i, j in pairs if counts[i, j]]
