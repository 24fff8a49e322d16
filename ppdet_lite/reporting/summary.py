"""All numbers of a report."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.evaluation.coco_metric import SUMMARY
from ppdet_lite.evaluation.results_file import Results
from ppdet_lite.reporting import averages, curves
from ppdet_lite.reporting.confusion import confusion_matrix
from ppdet_lite.reporting.curves import Operating, Ranked
from ppdet_lite.reporting.errors import ERRORS, Errors, error_costs, find_errors
from ppdet_lite.reporting.matching import (
    AT_HALF,
    Found,
    Matches,
    Pairs,
    Truth,
    found_of,
    match,
    overlapping_pairs,
    truth_of,
)

BACKGROUND = "background"


class Analysis(NamedTuple):
    """Detections and objects of a dataset, and what became of each."""

    found: Found
    truth: Truth
    pairs: Pairs
    matches: Matches
    errors: Errors


def analyse(dataset: CocoDataset, results: Results) -> Analysis:
    """Match a dataset with results and tell the kinds of errors."""
    found, truth = found_of(results, dataset), truth_of(dataset)
    pairs = overlapping_pairs(found, truth, len(dataset))
    matches = match(found, truth, pairs)
    return Analysis(found, truth, pairs, matches, find_errors(found, truth, pairs, matches))


def summarise(dataset: CocoDataset, analysis: Analysis, metrics: dict[str, Any], score: float) -> dict[str, Any]:
    """The numbers of a report as JSON takes them; null where there is nothing to measure.

    metrics: what `score_file` says of the same results. score: from which detections are taken, where one is needed.
    """
    found, truth, pairs, matches, errors = analysis
    count = dataset.num_classes
    positives = object_counts(truth, count)
    ranked = list(averages.ranked_classes(found, matches, AT_HALF, count))
    everything = pooled(analysis)
    one = np.ones((1, len(dataset)), np.int64)
    ap50 = averages.class_aps(found, truth, _at_half(matches), one, count, truth.is_crowd)[0, 0]
    confusion = confusion_matrix(found, truth, pairs, matches, score, count)
    costs = error_costs(found, truth, errors, count)
    bins = curves.calibration(everything)
    return {
        "metrics": {name: known(metrics[name]) for name in SUMMARY},
        "iou": 0.5,
        "score": score,
        "all": _rates(everything, sum(positives), score),
        "classes": [
            {
                "name": name,
                "objects": positives[k],
                "detections": len(ranked[k].scores),
                "AP": known(metrics["per_class"][name]),
                "AP50": None if np.isnan(ap50[k]) else float(ap50[k]),
                **_rates(ranked[k], positives[k], score),
            }
            for k, name in enumerate(dataset.class_names)
        ],
        "confusion": {"names": [*dataset.class_names, BACKGROUND], "counts": confusion.tolist()},
        "errors": {
            "AP50": costs["AP50"],
            "kinds": {
                **{kind.name.lower(): _kind(int(np.sum(errors.kinds == kind)), costs, kind.name) for kind in ERRORS},
                "missed": _kind(int(errors.missed.sum()), costs, "missed"),
            },
            "false_positives": costs["false_positives"],
            "false_negatives": costs["false_negatives"],
        },
        "calibration": {"error": curves.calibration_error(bins), "bins": bins},
        "by_size": _groups(averages.by_size(found, truth, pairs, len(dataset), count)),
        "by_crowding": _groups(averages.by_crowding(found, truth, matches, len(dataset), count)),
        "by_nearness": [g._asdict() for g in averages.by_nearness(found, truth, matches, len(dataset), score)],
    }


def per_image(dataset: CocoDataset, analysis: Analysis, score: float) -> list[dict[str, Any]]:
    """What became of each image, at IoU 0.5 and a score, in the order of the dataset."""
    found, truth, _, matches, _ = analysis
    taken = matches.truth[AT_HALF]
    good = (found.scores >= score) & ~matches.ignored[AT_HALF]
    images = len(dataset)
    objects = np.bincount(truth.images[~truth.is_crowd], minlength=images).tolist()
    right = np.bincount(found.images[good & (taken >= 0)], minlength=images).tolist()
    wrong = np.bincount(found.images[good & (taken < 0)], minlength=images).tolist()
    rows = []
    for i in range(images):
        at = Operating(score, right[i], wrong[i], objects[i] - right[i])
        rows.append(
            {
                "image_id": int(dataset.image_ids[i]),
                "file": file_name(dataset, i),
                "objects": objects[i],
                "true_positives": at.true_positives,
                "false_positives": at.false_positives,
                "missed": at.missed,
                "f1": at.f1,
            }
        )
    return rows


def known(value: float) -> float | None:
    """A number of the COCO metric, whose -1 means nothing to measure."""
    return None if value == -1 else value


def pooled(analysis: Analysis) -> Ranked:
    """The detections of all classes together, at IoU 0.5."""
    counts = ~analysis.matches.ignored[AT_HALF]
    found = analysis.found
    return Ranked(analysis.matches.truth[AT_HALF][counts] >= 0, found.images[counts], found.scores[counts])


def object_counts(truth: Truth, class_count: int) -> list[int]:
    """The objects of each class, crowds left out."""
    return np.bincount(truth.classes[~truth.is_crowd], minlength=class_count).tolist()


def file_name(dataset: CocoDataset, image: int) -> str:
    """The path of an image, by its position, below the dataset's folder; of several mixed datasets, all of it."""
    path = Path(dataset.info(image).path)
    return path.relative_to(dataset.images).as_posix() if path.is_relative_to(dataset.images) else str(path)


def _rates(ranked: Ranked, positives: int, score: float) -> dict[str, Any]:
    best = curves.at_best_f1(ranked, positives)
    return {"best": _point(best) if best else None, "at_score": _point(curves.at_score(ranked, positives, score))}


def _point(point: Operating) -> dict[str, float | None]:
    return {**point._asdict(), "precision": point.precision, "recall": point.recall, "f1": point.f1}


def _kind(count: int, costs: dict[str, float], name: str) -> dict[str, float]:
    return {"count": count, "cost": costs[name.lower()]}


def _groups(groups: list[averages.Group]) -> list[dict[str, Any]]:
    return [{**group._asdict(), "high": None if np.isinf(group.high) else group.high} for group in groups]


def _at_half(matches: Matches) -> Matches:
    return Matches(matches.truth[:1], matches.ignored[:1])
