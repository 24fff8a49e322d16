"""labelme: a JSON file for each image, with shapes of points."""

import json
import math
from pathlib import Path
from typing import Any

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import shown
from ppdet_lite.data.importing.records import (
    LARGEST,
    Box,
    Found,
    Picture,
    bounds,
    class_name,
    files_below,
    read_text,
    size_of,
)

POINTS = {"rectangle": 2, "polygon": 3, "mask": 2, "circle": 2}  # shapes that have a box -> points at least


def read(source: Path, images: Path | None = None) -> Found:
    """Read the JSON files below a folder.

    images: where the images are; otherwise each where its `imagePath` says, relative to the JSON file.
    Rectangles, polygons, circles and masks give the boxes around them.

    Raises UserError with file, number of the shape and value for what is malformed, and for shapes without a box.
    """
    return Found([_picture(file, source, images) for file in files_below(source, ".json")])


def _picture(file: Path, source: Path, images: Path | None) -> Picture:
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested deeply, or a number of thousands of digits
        raise UserError(f"{file}: not labelme JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{file}: not labelme JSON: it has no list of shapes")
    path, name = _image(content.get("imagePath"), file, source, images)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = None if height is None or width is None else size_of(str(height), str(width), str(file))
    boxes = [_box(shape, f"{file}: shape {n}") for n, shape in enumerate(content["shapes"], start=1)]
    return Picture(path, name, boxes, str(file), size)


def _image(said: Any, file: Path, source: Path, images: Path | None) -> tuple[Path, str]:
    """The image of a JSON file and its name relative to the source."""
    if not isinstance(said, str) or not said.strip() or "\0" in said:
        raise UserError(f"{file}: imagePath is no file name: {shown(said)}")
    said = said.replace("\\", "/")
    relative = file.parent.relative_to(source)
    bases = [file.parent] if images is None else [images / relative, images]
    tries = [base / name for base in bases for name in (said, Path(said).name)]
    path = next((path for path in tries if path.is_file()), None)
    if path is None:
        raise UserError(
            f"{file}: imagePath {shown(said)} is not there, looked for at {shown(str(tries[0]))}; give --images"
        )
    return path, (relative / path.name).as_posix()


def _box(shape: Any, place: str) -> Box:
    if not isinstance(shape, dict):
        raise UserError(f"{place}: no mapping")
    label, kind = shape.get("label"), shape.get("shape_type", "polygon")
    if not isinstance(label, str):
        raise UserError(f"{place}: label is no text: {shown(label)}")
    name = class_name(label, place)
    if not isinstance(kind, str) or kind not in POINTS:
        raise UserError(f"{place} ({name}): a {shown(kind)} has no box; of use are {', '.join(POINTS)}")
    points = shape.get("points")
    if not isinstance(points, list) or len(points) < POINTS[kind]:
        raise UserError(f"{place} ({name}): a {kind} has {POINTS[kind]} points or more: {shown(points)}")
    found = [_point(point, f"{place} ({name})") for point in points]
    if kind == "circle":  # its centre, and a point on it
        (x, y), radius = found[0], math.dist(found[0], found[1])
        found = [(x - radius, y - radius), (x + radius, y + radius)]
    difficult = shape.get("difficult")
    if difficult not in (None, False, True):
        raise UserError(f"{place} ({name}): difficult is neither true nor false: {shown(difficult)}")
    return Box(name, bounds(found), None if difficult is None else bool(difficult))


def _point(point: Any, place: str) -> tuple[float, float]:
    numbers = point if isinstance(point, list) else []
    if len(numbers) != 2 or not all(type(n) in (int, float) and abs(n) <= LARGEST for n in numbers):
        raise UserError(f"{place}: a point is two numbers, x and y: {shown(point)}")
    return float(numbers[0]), float(numbers[1])
