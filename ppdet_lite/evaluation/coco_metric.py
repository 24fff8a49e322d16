"""The COCO metric: conversion of detections to COCO results, and scoring of results files.

Two packages compute it: faster-coco-eval in C++, and pycocotools, the original. Both give the same digits.
"""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.evaluation_checks import SUMMARY
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.evaluation.coco_backends import BackendName, require_backend
from ppdet_lite.evaluation.results_file import Results, read_results

COLUMNS = 4  # classes per line of the logged table


def coco_results(results: Iterable[ImageDetections], category_ids: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield the records of a COCO results file, {image_id, category_id, bbox [x, y, w, h], score}, image by image."""
    for image in results:
        boxes = image.boxes.astype(np.float64)  # so that widths are exact
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        categories = category_ids[image.classes].tolist()
        for box, category, score in zip(xywh, categories, image.scores.tolist(), strict=True):
            yield {"image_id": image.image_id, "category_id": category, "bbox": box, "score": score}


def score_file(dataset: CocoDataset, results: Path, backend: BackendName = "auto") -> dict[str, Any]:
    """Score a COCO results file (bbox) against the annotations of a dataset; log which backend does it.

    Returns AP, AP50, ..., ARl (see `SUMMARY`) in 0..1, `per_class` {name: AP}, `per_class_AP50` {name: AP50}, and the
    numbers of `images` and `detections`. A metric is -1 if no object of its size or class is annotated; without any
    detection all others are 0. Raises UserError if the file is missing or does not belong to this dataset, or if the
    backend is not installed.
    """
    selected = require_backend(backend)
    records = _as_annotations(read_results(Path(results), dataset))
    truth, start = dataset.ground_truth(), time.perf_counter()
    evaluation = selected.evaluate(truth, {**truth, "annotations": records})
    get_logger().info("scored by %s in %.1f s", selected, time.perf_counter() - start)
    precision = evaluation.precision[:, :, :, 0, -1]  # [IoU thresholds, recalls, K], all sizes, 100 detections
    index = {category: k for k, category in enumerate(evaluation.category_ids)}
    columns = {name: index[i] for name, i in zip(dataset.class_names, dataset.category_ids.tolist(), strict=True)}
    return {
        **{name: float(value) for name, value in zip(SUMMARY, evaluation.summary, strict=True)},
        "per_class": {name: _mean(precision[:, :, k]) for name, k in columns.items()},
        "per_class_AP50": {name: _mean(precision[0, :, k]) for name, k in columns.items()},
        "images": len(dataset),
        "detections": len(records),
    }


def _as_annotations(results: Results) -> list[dict[str, Any]]:
    """Convert detections to annotations as COCO.loadRes does, which fails on an empty list."""
    keys = ("image_id", "category_id", "bbox", "score", "id", "area", "iscrowd")
    areas = results.xywh[:, 2] * results.xywh[:, 3]
    columns = (*results, np.arange(1, len(areas) + 1), areas, np.zeros(len(areas), int))
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [dict(zip(keys, row, strict=True)) for row in rows]


def format_metrics(metrics: dict[str, Any]) -> str:
    """Format the metrics of `score_file` as lines of text; -- if no object is annotated."""
    lines = [f"{metrics['detections']} detections in {metrics['images']} images"]
    if "loss" in metrics:
        losses = {"loss": metrics["loss"], **metrics["losses"]}
        lines.append("  ".join(f"{name} {value:.4f}" for name, value in losses.items()))
    lines += [_row((name, metrics[name]) for name in names) for names in (SUMMARY[:6], SUMMARY[6:])]
    classes = list(metrics["per_class"].items())
    width = max(len(name) for name, _ in classes)
    rows = (classes[start : start + COLUMNS] for start in range(0, len(classes), COLUMNS))
    return "\n".join([*lines, "AP per class", *(_row(row, width) for row in rows)])


def _mean(precision: np.ndarray) -> float:
    """Return the mean of the precisions that are defined (pycocotools sets others to -1); -1 if none is."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def _row(items: Iterable[tuple[str, float]], width: int = 0) -> str:
    cells = (f"{name:<{width or 5}} {'--' if value == -1 else f'{value:.3f}':5}" for name, value in items)
    return "  ".join(cells).rstrip()
