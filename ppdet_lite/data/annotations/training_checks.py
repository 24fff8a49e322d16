"""What is to be told of data before training on them, beside what was mended in reading."""

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at


def training_problems(dataset: CocoDataset) -> list[Problem]:
    """What keeps a training set from being learned, "boxes_none", or a class of it, "class_empty"."""
    found, total = dataset.statistics(), len(dataset)
    if not found.boxes.any():
        return problems_at("boxes_none", range(total), total, lambda row: Example(image=int(dataset.image_ids[row])))

    def example(k: int) -> Example:
        return Example(category=int(dataset.category_ids[k]), value=dataset.class_names[k])

    return problems_at("class_empty", np.flatnonzero(found.boxes == 0), dataset.num_classes, example)
