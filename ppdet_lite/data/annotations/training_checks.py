"""Checks of a dataset before it is trained on, in addition to those of reading."""

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at


def training_problems(dataset: CocoDataset) -> list[Problem]:
    """Return the problem "boxes_none" if no image has a box to train on, or "class_empty" if some classes have none."""
    boxes, total = dataset.statistics().boxes, len(dataset)
    if not boxes.any():
        return problems_at("boxes_none", range(total), total, lambda row: Example(image=int(dataset.image_ids[row])))

    def example(k: int) -> Example:
        return Example(category=int(dataset.category_ids[k]), value=dataset.class_names[k])

    return problems_at("class_empty", np.flatnonzero(boxes == 0), dataset.num_classes, example)
