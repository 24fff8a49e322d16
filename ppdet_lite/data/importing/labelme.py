"""labelme: a JSON file for each image, with shapes given by points."""

import json
import math
from pathlib import Path
from typing import Any

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.records import Box, ImportedData, ImportedImage

POINTS = {
    "rectangle": 2,
    "polygon": 3,
    "mask": 2,
    "circle": 2,
}  # shape types with a bounding box -> minimum number of points


def read(source: Path, images: Path | None = None) -> ImportedData:
    """Read the JSON files below a folder.

    images: the image folder; by default `imagePath` is relative to the JSON file. Rectangles, polygons, circles and
    masks are converted to their bounding boxes.

    Raises UserError with file, shape number and value if something is malformed or a shape has no bounding box.
    """
    return ImportedData([_read_file(file, source, images) for file in records.files_below(source, ".json")])


def _read_file(file: Path, source: Path, images: Path | None) -> ImportedImage:
    try:
        content = json.loads(records.read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        raise UserError(f"{file}: not labelme JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{file}: not labelme JSON: it has no list of shapes")
    path, name = _find_image(content.get("imagePath"), file, source, images)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = None if height is None or width is None else records.parse_size(str(height), str(width), str(file))
    boxes = [_box(shape, f"{file}: shape {n}") for n, shape in enumerate(content["shapes"], start=1)]
    return ImportedImage(path, name, boxes, str(file), size)


def _find_image(image_path: Any, file: Path, source: Path, images: Path | None) -> tuple[Path, str]:
    """Return the path of the image of a JSON file, and its name relative to the source."""
    if not isinstance(image_path, str) or not image_path.strip() or "\0" in image_path:
        raise UserError(f"{file}: imagePath is not a file name: {format_value(image_path)}")
    image_path = image_path.replace("\\", "/")
    relative = file.parent.relative_to(source)
    bases = [file.parent] if images is None else [images / relative, images]
    candidates = [base / name for base in bases for name in (image_path, Path(image_path).name)]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        where = f"{format_value(image_path)} (imagePath), expected at {format_value(str(candidates[0]))}"
        raise UserError(f"{file}: no image {where}; give --images")
    return path, (relative / path.name).as_posix()


def _box(shape: Any, location: str) -> Box:
    if not isinstance(shape, dict):
        raise UserError(f"{location}: not a JSON object")
    label, kind = shape.get("label"), shape.get("shape_type", "polygon")
    if not isinstance(label, str):
        raise UserError(f"{location}: label is not text: {format_value(label)}")
    name = records.parse_class_name(label, location)
    if not isinstance(kind, str) or kind not in POINTS:
        raise UserError(
            f"{location} ({name}): shape type {format_value(kind)} has no box; supported are {', '.join(POINTS)}"
        )
    points = shape.get("points")
    if not isinstance(points, list) or len(points) < POINTS[kind]:
        raise UserError(f"{location} ({name}): a {kind} needs at least {POINTS[kind]} points: {format_value(points)}")
    corners = [_point(point, f"{location} ({name})") for point in points]
    if kind == "circle":  # the points are its center and a point on it
        (x, y), radius = corners[0], math.dist(corners[0], corners[1])
        corners = [(x - radius, y - radius), (x + radius, y + radius)]
    difficult = shape.get("difficult")
    if difficult not in (None, False, True):
        raise UserError(f"{location} ({name}): difficult is neither true nor false: {format_value(difficult)}")
    return Box(name, records.bounding_box(corners), None if difficult is None else bool(difficult))


def _point(point: Any, location: str) -> tuple[float, float]:
    numbers = point if isinstance(point, list) else []
    if len(numbers) != 2 or not all(type(n) in (int, float) and abs(n) <= records.MAX_COORDINATE for n in numbers):
        raise UserError(f"{location}: a point must be two numbers, x and y: {format_value(point)}")
    return float(numbers[0]), float(numbers[1])
