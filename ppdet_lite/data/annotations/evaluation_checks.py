"""Checks of a dataset before it is evaluated on, in addition to those of reading: what the COCO metric can measure."""

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at
from ppdet_lite.data.annotations.statistics import LARGE, SMALL

MAX_COUNTED = 100  # detections of a class in an image that the metric counts, those of highest score
SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # COCOeval's order
AREAS = {"s": (0, SMALL), "m": (SMALL, LARGE), "l": (LARGE, 1e10)}  # by a metric's last letter, ends included
ALL_AREAS = (0, 1e10)


def evaluation_problems(dataset: CocoDataset) -> list[Problem]:
    """Return the problem "objects_many" if images have more objects of a class than the metric counts detections."""

    def example(row: int) -> Example:
        return Example(image=int(dataset.image_ids[row]), file=dataset.info(row).path, value=f"{counts[row]} objects")

    counts = dataset.largest_class_counts()
    return problems_at("objects_many", counts > MAX_COUNTED, len(dataset), example)


def measurable_metrics(dataset: CocoDataset) -> list[str]:
    """Return the SUMMARY for whose sizes the dataset has objects; pycocotools gives the others as -1."""
    areas = dataset.object_areas()

    def is_measurable(name: str) -> bool:
        low, high = AREAS.get(name[-1], ALL_AREAS)
        return bool(np.any((areas >= low) & (areas <= high)))

    return [name for name in SUMMARY if is_measurable(name)]
