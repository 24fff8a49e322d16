"""Values as other tools write them: numbers as text, whole numbers as 1.0, flags as "false", boxes as outlines."""

import math
import re
from collections.abc import Sequence
from typing import Any

_WHOLE = re.compile(r"\s*[+-]?[0-9]+(?:\.0*)?\s*")
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f]")
_EXACT = 2**53  # beyond, a float is no certain whole number
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def whole(value: Any) -> tuple[int | None, bool]:
    """A whole number of 64 bits, None if it is none; and whether it is written as one: 1, not 1.0 or "1"."""
    if type(value) is int:  # bool is no number here
        return (value, True) if value.bit_length() <= 63 else (None, True)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value), False
    if isinstance(value, str) and _WHOLE.fullmatch(value) and len(value) < 30:
        found = int(value.strip().partition(".")[0])
        return (found, False) if found.bit_length() <= 63 else (None, True)
    return None, True


def number(value: Any) -> tuple[float | None, bool]:
    """A number, NaN for null, None if it is none; and whether it is written as one, not as text."""
    if value is None:
        return math.nan, True
    if type(value) is int:
        return (float(value), True) if value.bit_length() <= 63 else (None, True)
    if isinstance(value, float):
        return value, True
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value), False
    return None, True


def crowd(value: Any) -> tuple[bool | None, bool]:
    """What iscrowd says, None if nothing (null, NaN); and whether it is written as 0 or 1 (or not at all)."""
    if value is None or value != value:
        return None, True
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower()), False
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value), type(value) is int
    return None, True


def is_file_name(value: str) -> bool:
    """Whether a system can have such a file: no empty name, null byte or half of a surrogate pair."""
    return bool(value.strip()) and "\0" not in value and not _SURROGATES.search(value)


def is_name(value: str) -> bool:
    """Whether a text can name a class in logs and tables: nothing but spaces, and control characters, cannot."""
    return bool(value.strip()) and not _CONTROLS.search(value.strip()) and not _SURROGATES.search(value)


def segmentation_box(value: Any, image_size: Sequence[int]) -> list[float] | None:
    """x, y, width and height of polygons [[x, y, ...], ...] or of a run-length mask; None if it is neither.

    A mask must have the size of its image, (h, w), where that is known and not 0; which is which may be mixed up.
    """
    if not isinstance(value, dict):
        return _outline_box(value)
    found, size = _mask_box(value), value.get("size")
    return found if found is None or min(image_size) == 0 or sorted(size) == sorted(image_size) else None


def _outline_box(value: Any) -> list[float] | None:
    polygons = value if isinstance(value, list) and all(isinstance(part, list) for part in value) else [value]
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return None
        found = [number(item)[0] for item in polygon]
        if not all(item is not None and math.isfinite(item) for item in found):
            return None
        xs += found[::2]
        ys += found[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)] if xs else None


def _mask_box(value: dict) -> list[float] | None:
    from pycocotools import mask

    size, counts = value.get("size"), value.get("counts")
    if not isinstance(size, Sequence) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        return None
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != size[0] * size[1]:
            return None
        encoded = mask.frPyObjects({"size": size, "counts": counts}, *size)
    elif isinstance(counts, str) and counts.isascii() and counts:
        encoded = {"size": size, "counts": counts.encode()}
    else:
        return None
    x, y, width, height = mask.toBbox(encoded).tolist()
    inside = x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= size[1] and y + height <= size[0]
    return [x, y, width, height] if inside else None
