"""labelme: a JSON file for each image, with shapes given by points."""

import base64
import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.images.sizes import read_header
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import Box, ImportedData, ImportedImage

POINTS = {
    "rectangle": 2,
    "polygon": 3,
    "mask": 2,
    "circle": 2,
    "rotation": 4,  # of X-AnyLabeling
    "oriented_rectangle": 4,
}  # shape types with a bounding box -> minimum number of points
OUTLINES = {"rectangle": "box", "rotation": "rotated box", "oriented_rectangle": "rotated box"}
IGNORE, BACKGROUND = "__ignore__", "_background_"  # the labels that are no classes, in labelme's own converters


class _Shape(NamedTuple):
    box: Box
    group: int | str | None


def read(source: Path, images: Path | None, bad_items: BadItems, scratch: Path) -> ImportedData:
    """Read the JSON files below a folder.

    images: the image folder; by default `imagePath` is relative to the JSON file. An image that is only in `imageData`
        is written into the folder `scratch`.

    Rectangles are boxes; polygons, circles, masks and rotated boxes are converted to their bounding boxes. As in
    labelme's own converter, shapes with the same group_id and label are one object. Shapes labeled `__ignore__` become
    regions to ignore, and those labeled `_background_` are left out.

    Raises UserError with file, shape number and value if something is malformed or a shape has no bounding box.
    """
    files, imported = records.files_below(source, ".json"), []
    counts: Counter[str] = Counter()
    for file in files:
        with bad_items.item():
            imported.append(_read_file(file, source, images, bad_items, scratch, counts))
    notes = [f"{message}: {counts[message]}" for message in counts]
    folders = {images or source, *(image.path.parent for image in imported if image.extracted is None)}
    paths = (path for folder in folders for path in folder.rglob("*"))
    return ImportedData(imported, notes=(*notes, *records.unlabeled(imported, paths, "JSON file")))


def _read_file(
    file: Path, source: Path, images: Path | None, bad_items: BadItems, scratch: Path, counts: Counter
) -> ImportedImage:
    """Read one file, and count what has to be reported."""
    content = _load(file)
    height, width = content.get("imageHeight"), content.get("imageWidth")
    size = None if height is None or width is None else records.parse_size(str(height), str(width), str(file))
    path, name, extracted = _find_image(content, file, source, images, scratch)
    shapes = []
    for number, value in enumerate(content["shapes"], start=1):
        with bad_items.item():
            shapes.append(_shape(value, f"{file}: shape {number}"))
    ignored = tuple(shape.box.corners for shape in shapes if shape.box.name == IGNORE)
    objects = [shape for shape in shapes if shape.box.name not in (IGNORE, BACKGROUND)]
    boxes = _joined(objects)
    messages = {
        f"shapes labeled {BACKGROUND}, left out": len(shapes) - len(objects) - len(ignored),
        "shapes joined to an object of the same group_id and label": len(objects) - len(boxes),
        "images read from imageData": int(extracted is not None),
    }
    counts.update({message: count for message, count in messages.items() if count})
    return ImportedImage(path, name, boxes, str(file), size, ignored=ignored, extracted=extracted)


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(records.read_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number with thousands of digits
        raise UserError(f"{file}: not labelme JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        raise UserError(f"{file}: not labelme JSON: it has no list of shapes")
    return content


def _find_image(
    content: dict[str, Any], file: Path, source: Path, images: Path | None, scratch: Path
) -> tuple[Path, str, Path | None]:
    """Return the path of the image of a JSON file, its name relative to the source, and the path of extracted data."""
    image_path = content.get("imagePath")
    if not isinstance(image_path, str) or not image_path.strip() or "\0" in image_path:
        raise UserError(f"{file}: imagePath is not a file name: {format_value(image_path)}")
    image_path = image_path.replace("\\", "/")
    relative = file.parent.relative_to(source)
    bases = [file.parent] if images is None else [images / relative, images]
    candidates = [base / name for base in bases for name in (image_path, Path(image_path).name)]
    path, extracted = next((path for path in candidates if os.path.isfile(path)), None), None
    if path is None and content.get("imageData") is not None:
        path, extracted = file.parent / Path(image_path).name, scratch / file.relative_to(source)
        _extract(content["imageData"], extracted, file)
    if path is None:
        where = f"{format_value(image_path)} (imagePath), expected at {format_value(str(candidates[0]))}"
        raise UserError(f"{file}: no image {where}; give --images")
    return path, (relative / path.name).as_posix(), extracted


def _extract(data: Any, path: Path, file: Path) -> None:
    """Write the image that a JSON file contains."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.write_bytes(base64.b64decode(data))
    except (TypeError, ValueError):
        raise UserError(f"{file}: imageData is not base64: {format_value(data)[:60]}") from None
    if read_header(path) is None:
        raise UserError(f"{file}: imageData is damaged or not an image")


def _shape(shape: Any, location: str) -> _Shape:
    if not isinstance(shape, dict):
        raise UserError(f"{location}: not a JSON object")
    label, kind, group = shape.get("label"), shape.get("shape_type") or "polygon", shape.get("group_id")
    if not isinstance(label, str):
        raise UserError(f"{location}: label is not text: {format_value(label)}")
    name = records.parse_class_name(label, location)
    if not isinstance(group, (int, str, type(None))):
        raise UserError(f"{location} ({name}): group_id is not an integer: {format_value(group)}")
    if not isinstance(kind, str) or kind not in POINTS:
        raise UserError(
            f"{location} ({name}): shape type {format_value(kind)} has no box; supported are {', '.join(POINTS)}"
        )
    points = shape.get("points")
    if not isinstance(points, list) or len(points) < POINTS[kind]:
        raise UserError(f"{location} ({name}): a {kind} needs at least {POINTS[kind]} points: {format_value(points)}")
    corners = _corners(kind, [_point(point, f"{location} ({name})") for point in points])
    difficult = shape.get("difficult")
    if difficult not in (None, False, True):
        raise UserError(f"{location} ({name}): difficult is neither true nor false: {format_value(difficult)}")
    difficult = None if difficult is None else bool(difficult)
    return _Shape(Box(name, corners, difficult, OUTLINES.get(kind, kind)), group)


def _corners(kind: str, points: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Return the corners of the box around a shape."""
    if kind == "circle":  # the points are its center and a point on it
        (x, y), radius = points[0], math.dist(points[0], points[1])
        return x - radius, y - radius, x + radius, y + radius
    x1, y1, x2, y2 = records.bounding_box(points)
    if kind == "mask":  # the points are its first and last pixel, with fractions where it was moved by the mouse
        left, top = float(round(x1)), float(round(y1))
        return left, top, left + round(x2 - x1) + 1, top + round(y2 - y1) + 1
    return x1, y1, x2, y2


def _joined(shapes: list[_Shape]) -> list[Box]:
    """Return the boxes of the objects: shapes of one group_id and label are one object."""
    objects: dict[Any, list[Box]] = {}
    for number, (box, group) in enumerate(shapes):
        objects.setdefault((box.name, number) if group is None else (box.name, "group", group), []).append(box)
    return [_around(boxes) for boxes in objects.values()]


def _around(boxes: list[Box]) -> Box:
    """Return the box around the boxes of one object."""
    if len(boxes) == 1:
        return boxes[0]
    corners = records.bounding_box(point for box in boxes for point in (box.corners[:2], box.corners[2:]))
    flags = [box.difficult for box in boxes if box.difficult is not None]
    outline = next((box.outline for box in boxes if box.outline != "box"), "box")
    return Box(boxes[0].name, corners, any(flags) if flags else None, outline)


def _point(point: Any, location: str) -> tuple[float, float]:
    numbers = point if isinstance(point, list) else []
    if len(numbers) != 2 or not all(type(n) in (int, float) and abs(n) <= records.MAX_COORDINATE for n in numbers):
        raise UserError(f"{location}: a point must be two numbers, x and y: {format_value(point)}")
    return float(numbers[0]), float(numbers[1])
