"""Counts of the objects of a dataset by class and size, and the table that shows them."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

SMALL, LARGE = 32**2, 96**2  # pixels of area, as in the COCO metric
MAX_CLASSES = 20  # up to this many classes the table shows all
SHOWN_ENDS = 5  # otherwise it shows this many of the most frequent and of the rarest classes


class Statistics(NamedTuple):
    """Counts of a dataset; crowd regions do not count as boxes."""

    images: int
    empty_images: int  # images without boxes
    crowds: int
    boxes: np.ndarray  # [K], per class
    small: int  # boxes with an area below 32 x 32
    medium: int
    large: int  # boxes with an area of 96 x 96 or more


def count(classes: np.ndarray, areas: np.ndarray, is_crowd: np.ndarray, per_image: np.ndarray, k: int) -> Statistics:
    """Count objects, given [A] classes 0..k-1, areas and crowd flags, and the [images] numbers of boxes per image."""
    areas = areas[~is_crowd]
    small, large = int(np.sum(areas < SMALL)), int(np.sum(areas >= LARGE))
    boxes = np.bincount(classes[~is_crowd], minlength=k)
    return Statistics(
        images=len(per_image),
        empty_images=int(np.sum(per_image == 0)),
        crowds=int(np.sum(is_crowd)),
        boxes=boxes,
        small=small,
        medium=len(areas) - small - large,
        large=large,
    )


def total_rows(sets: Collection[Statistics]) -> list[tuple[str, list[int]]]:
    """Return rows of a label and its count in each dataset, crowd regions last. Labels of parts are indented."""
    return [
        ("images", [column.images for column in sets]),
        ("  without boxes", [column.empty_images for column in sets]),
        ("boxes", [int(column.boxes.sum()) for column in sets]),
        ("  small, below 32 x 32", [column.small for column in sets]),
        ("  medium", [column.medium for column in sets]),
        ("  large, from 96 x 96", [column.large for column in sets]),
        ("crowd regions", [column.crowds for column in sets]),
    ]


def format_statistics(columns: dict[str, Statistics], class_names: Sequence[str]) -> str:
    """Format the counts of datasets side by side, sorting more than MAX_CLASSES classes by frequency in the first."""
    sets = list(columns.values())
    rows: list[tuple[str, list[int] | None]] = [*total_rows(sets)]
    if not any(column.crowds for column in sets):
        rows.pop()  # that of crowd regions
    rows.append(("boxes per class", None))
    order = range(len(class_names))
    if len(class_names) > MAX_CLASSES:
        order = np.argsort(-sets[0].boxes, kind="stable").tolist()
    for rank, k in enumerate(order):
        if len(class_names) > MAX_CLASSES and SHOWN_ENDS <= rank < len(order) - SHOWN_ENDS:
            if rank == SHOWN_ENDS:
                rows.append((f"  ... {len(order) - 2 * SHOWN_ENDS} more classes", None))
            continue
        rows.append((f"  {class_names[k]}", [int(column.boxes[k]) for column in sets]))
    width = max(len(name) for name, _ in rows)
    head = f"{'':<{width}}" + "".join(f"{name:>10}" for name in columns)
    lines = [f"{name:<{width}}" + "".join(f"{n:>10}" for n in numbers or ()) for name, numbers in rows]
    return "\n".join(line.rstrip() for line in [head, *lines])
