"""How many objects a data set has, of which classes and sizes, as a small table."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SMALL, LARGE = 32**2, 96**2  # pixels, as the COCO metric divides them
MOST_CLASSES = 20  # that a table shows one by one
SHOWN_ENDS = 5  # of more: this many of the most frequent, and of the rarest


class Statistics(NamedTuple):
    """The numbers of a data set; boxes are those that are no crowd."""

    images: int
    empty_images: int  # without such boxes
    crowds: int
    boxes: np.ndarray  # [K]
    small: int  # area below 32 x 32
    medium: int
    large: int  # area from 96 x 96


def count(classes: np.ndarray, areas: np.ndarray, is_crowd: np.ndarray, per_image: np.ndarray, k: int) -> Statistics:
    """Count objects: [A] classes 0..k-1, areas, crowd flags, and how many that are no crowd each image has."""
    areas = areas[~is_crowd]
    small, large = int(np.sum(areas < SMALL)), int(np.sum(areas >= LARGE))
    boxes = np.bincount(classes[~is_crowd], minlength=k)
    empty = int(np.sum(per_image == 0))
    return Statistics(len(per_image), empty, int(np.sum(is_crowd)), boxes, small, len(areas) - small - large, large)


def format_statistics(columns: dict[str, Statistics], class_names: Sequence[str]) -> str:
    """Lay out the numbers of data sets of the same classes side by side; of many classes the first one orders them."""
    sets = list(columns.values())
    rows = [
        ("images", [each.images for each in sets]),
        ("  without boxes", [each.empty_images for each in sets]),
        ("boxes", [int(each.boxes.sum()) for each in sets]),
        ("  small, below 32 x 32", [each.small for each in sets]),
        ("  medium", [each.medium for each in sets]),
        ("  large, from 96 x 96", [each.large for each in sets]),
    ]
    if any(each.crowds for each in sets):
        rows.append(("crowd regions", [each.crowds for each in sets]))
    rows.append(("boxes per class", None))
    order = range(len(class_names))
    if len(class_names) > MOST_CLASSES:
        order = np.argsort(-sets[0].boxes, kind="stable").tolist()
    for place, k in enumerate(order):
        if len(class_names) > MOST_CLASSES and SHOWN_ENDS <= place < len(order) - SHOWN_ENDS:
            if place == SHOWN_ENDS:
                rows.append((f"  ... {len(order) - 2 * SHOWN_ENDS} more classes", None))
            continue
        rows.append((f"  {class_names[k]}", [int(each.boxes[k]) for each in sets]))
    width = max(len(name) for name, _ in rows)
    head = f"{'':<{width}}" + "".join(f"{name:>10}" for name in columns)
    lines = [f"{name:<{width}}" + "".join(f"{n:>10}" for n in numbers or ()) for name, numbers in rows]
    return "\n".join(line.rstrip() for line in [head, *lines])
