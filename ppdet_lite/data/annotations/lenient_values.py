"""Parses values as other tools write them: numbers as text, integers as 1.0, flags as "false", boxes as polygons.

`parse_integer`, `parse_number` and `parse_crowd_flag` return (value, usual): None for an invalid value, and usual=False
for a valid one that is not written in the usual form, which the reader reports as a note.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

_INTEGER = re.compile(r"\s*[+-]?[0-9]+(?:\.0*)?\s*")
_NUMBER = re.compile(r"\s*[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\s*")
_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\0-\x1f\x7f-\x9f]")
_EXACT = 2**53  # larger floats do not represent every integer
_FLAGS = {"0": False, "1": True, "false": False, "true": True}


def parse_integer(value: Any) -> tuple[int | None, bool]:
    """Parse a 64-bit integer; 1.0 and "1" are accepted as unusual forms of 1."""
    if type(value) is int:  # not isinstance: a bool is not accepted
        return (value, True) if value.bit_length() <= 63 else (None, True)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        return int(value), False
    if isinstance(value, str) and _INTEGER.fullmatch(value) and len(value) < 30:
        integer = int(value.strip().partition(".")[0])
        return (integer, False) if integer.bit_length() <= 63 else (None, True)
    return None, True


def parse_number(value: Any) -> tuple[float | None, bool]:
    """Parse a number; null becomes NaN, and text is accepted as an unusual form."""
    if value is None:
        return math.nan, True
    if type(value) is int:
        return (float(value), True) if value.bit_length() <= 63 else (None, True)
    if isinstance(value, float):
        return value, True
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value), False
    return None, True


def parse_crowd_flag(value: Any) -> tuple[bool | None, bool]:
    """Parse an iscrowd flag, usually 0 or 1; null and NaN become None. Text, 1.0 and booleans are unusual forms."""
    if value is None or value != value:
        return None, True
    if isinstance(value, str):
        return _FLAGS.get(value.strip().lower()), False
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value), type(value) is int
    return None, True


def is_flag_set(value: Any) -> bool:
    """Return whether a flag other than iscrowd is set: it has a value, and that does not mean 0."""
    return value is not None and value == value and parse_crowd_flag(value)[0] is not False


def is_rotated(attributes: Any) -> bool:
    """Return whether the attributes that CVAT gives an annotation contain a rotation, in degrees, other than 0."""
    angle = parse_number(attributes.get("rotation"))[0] if isinstance(attributes, dict) else None
    return angle is not None and math.isfinite(angle) and angle % 360 != 0


def is_file_name(value: str) -> bool:
    """Return whether a file can have this name: not blank, without null bytes and lone surrogates."""
    return bool(value.strip()) and "\0" not in value and not _SURROGATES.search(value)


def is_name(value: str) -> bool:
    """Return whether a text can be printed as a class name: not blank, without control characters and surrogates."""
    return bool(value.strip()) and not _CONTROLS.search(value.strip()) and not _SURROGATES.search(value)


def segmentation_box(value: Any, image_size: Sequence[int]) -> list[float] | None:
    """Return x, y, width, height of the box around polygons [[x, y, ...], ...] or a run-length mask, None otherwise.

    A mask must have the size of its image, (h, w), unless that is unknown (0); height and width may be swapped.
    """
    if not isinstance(value, dict):
        return _polygon_box(value)
    box = _mask_box(value)
    return box if box is None or min(image_size) == 0 or sorted(value["size"]) == sorted(image_size) else None


def _polygon_box(value: Any) -> list[float] | None:
    polygons = value if isinstance(value, list) and all(isinstance(part, list) for part in value) else [value]
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return None
        parsed = [parse_number(item)[0] for item in polygon]
        coordinates = [value for value in parsed if value is not None and math.isfinite(value)]
        if len(coordinates) < len(polygon):
            return None
        xs += coordinates[::2]
        ys += coordinates[1::2]
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
