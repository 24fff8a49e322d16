"""The numbers of a report."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.evaluation.coco_metric import SUMMARY
from ppdet_lite.evaluation.results_file import Results
from ppdet_lite.reporting import averages, curves, matching
from ppdet_lite.reporting.confusion import confusion_matrix
from ppdet_lite.reporting.curves import OperatingPoint, RankedDetections
from ppdet_lite.reporting.errors import ERRORS, Errors, error_costs, find_errors
from ppdet_lite.reporting.matching import IOU_50, Detections, GroundTruth, Matches, Pairs

BACKGROUND = "background"


class Analysis(NamedTuple):
    """The detections and objects of a dataset, their overlapping pairs, matches and errors."""

    detections: Detections
    ground_truth: GroundTruth
    pairs: Pairs
    matches: Matches
    errors: Errors


def analyze(dataset: CocoDataset, results: Results) -> Analysis:
    """Match results with the ground truth of a dataset and classify the errors."""
    detections, truth = matching.top_detections(results, dataset), matching.ground_truth_of(dataset)
    pairs = matching.overlapping_pairs(detections, truth, len(dataset))
    matches = matching.match(detections, truth, pairs)
    return Analysis(detections, truth, pairs, matches, find_errors(detections, truth, pairs, matches))


def summarize(dataset: CocoDataset, analysis: Analysis, metrics: dict[str, Any], score: float) -> dict[str, Any]:
    """Return the numbers of a report as JSON values; None where there is nothing to measure.

    metrics: the result of `score_file` for the same results.
    score: minimum score of the detections that count, for numbers that depend on one.
    """
    detections, truth, pairs, matches, errors = analysis
    count = dataset.num_classes
    positives = object_counts(truth, count)
    ranked = list(averages.ranked_classes(detections, matches, IOU_50, count))
    all_classes = pooled(analysis)
    all_images = np.ones((1, len(dataset)), np.int64)
    at_iou_50 = Matches(matches.objects[:1], matches.ignored[:1])
    ap50 = averages.class_aps(detections, truth, at_iou_50, all_images, count, truth.is_crowd)[0, 0]
    confusion = confusion_matrix(detections, truth, pairs, matches, score, count)
    costs = error_costs(detections, truth, errors, count)
    error_counts = {kind.name.lower(): int(np.sum(errors.kinds == kind)) for kind in ERRORS}
    error_counts["missed"] = int(errors.missed.sum())
    bins = curves.calibration(all_classes)
    return {
        "metrics": {name: none_if_missing(metrics[name]) for name in SUMMARY},
        "iou": 0.5,
        "score": score,
        "all": _rates(all_classes, sum(positives), score),
        "classes": [
            {
                "name": name,
                "objects": positives[k],
                "detections": len(ranked[k].scores),
                "AP": none_if_missing(metrics["per_class"][name]),
                "AP50": None if np.isnan(ap50[k]) else float(ap50[k]),
                **_rates(ranked[k], positives[k], score),
            }
            for k, name in enumerate(dataset.class_names)
        ],
        "confusion": {"names": [*dataset.class_names, BACKGROUND], "counts": confusion.tolist()},
        "errors": {
            "AP50": costs["AP50"],
            "kinds": {name: {"count": n, "cost": costs[name]} for name, n in error_counts.items()},
            "false_positives": costs["false_positives"],
            "false_negatives": costs["false_negatives"],
        },
        "calibration": {"error": curves.calibration_error(bins), "bins": bins},
        "by_size": [g._asdict() for g in averages.by_size(detections, truth, pairs, len(dataset), count)],
        "by_crowding": [g._asdict() for g in averages.by_crowding(detections, truth, matches, len(dataset), count)],
        "by_nearness": [g._asdict() for g in averages.by_nearness(detections, truth, matches, len(dataset), score)],
    }


def per_image(dataset: CocoDataset, analysis: Analysis, score: float) -> list[dict[str, Any]]:
    """Return the counts of each image at IoU 0.5 and a minimum score, in the order of the dataset."""
    detections, truth, _, matches, _ = analysis
    matched = matches.objects[IOU_50]
    counted = (detections.scores >= score) & ~matches.ignored[IOU_50]
    images = len(dataset)
    objects = np.bincount(truth.images[~truth.is_crowd], minlength=images).tolist()
    right = np.bincount(detections.images[counted & (matched >= 0)], minlength=images).tolist()
    wrong = np.bincount(detections.images[counted & (matched < 0)], minlength=images).tolist()
    rows = []
    for i in range(images):
        point = OperatingPoint(score, right[i], wrong[i], objects[i] - right[i])
        rows.append(
            {
                "image_id": int(dataset.image_ids[i]),
                "file": file_name(dataset, i),
                "objects": objects[i],
                "true_positives": point.true_positives,
                "false_positives": point.false_positives,
                "missed": point.missed,
                "f1": point.f1,
            }
        )
    return rows


def none_if_missing(value: float) -> float | None:
    """Return a number of the COCO metric, with None for -1, which means that there is nothing to measure."""
    return None if value == -1 else value


def pooled(analysis: Analysis) -> RankedDetections:
    """Return the detections of all classes together, at IoU 0.5, without ignored ones."""
    counted = ~analysis.matches.ignored[IOU_50]
    is_correct = analysis.matches.objects[IOU_50] >= 0
    return RankedDetections(is_correct[counted], analysis.detections.scores[counted])


def object_counts(truth: GroundTruth, class_count: int) -> list[int]:
    """Return the number of objects of each class, without crowd regions."""
    return np.bincount(truth.classes[~truth.is_crowd], minlength=class_count).tolist()


def file_name(dataset: CocoDataset, image: int) -> str:
    """Return the path of an image relative to the dataset's folder, or the full path in a mixed dataset."""
    path = Path(dataset.info(image).path)
    return path.relative_to(dataset.images).as_posix() if path.is_relative_to(dataset.images) else str(path)


def _rates(ranked: RankedDetections, positives: int, score: float) -> dict[str, Any]:
    best = curves.best_f1_point(ranked, positives)
    return {"best": _point(best) if best else None, "at_score": _point(curves.point_at_score(ranked, positives, score))}


def _point(point: OperatingPoint) -> dict[str, float | None]:
    return {**point._asdict(), "precision": point.precision, "recall": point.recall, "f1": point.f1}
