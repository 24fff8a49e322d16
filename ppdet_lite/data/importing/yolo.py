"""YOLO: a text file for each image with lines `class x y w h`, relative to the image; data.yaml or classes.txt."""

import re
from collections.abc import Sequence
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.other_formats import CONFIGS, yolo_root
from ppdet_lite.data.images.files import ImageFiles
from ppdet_lite.data.images.sizes import read_header
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import Box, ImportedData, ImportedImage
from ppdet_lite.data.importing.yolo_config import YoloConfig, read_class_list, read_config

LABELS = "labels"
_CLASS = re.compile(r"([0-9]{1,9})(?:\.0*)?")  # pandas writes 1.0
MIN_POSE = 10  # numbers that polygons may have before a file of them is suspected to contain keypoints


def read(source: Path, images: Path | None, bad_items: BadItems) -> ImportedData:
    """Read a folder with data.yaml (train, val, test) or classes.txt; the source may also be its labels or data.yaml.

    images: the image folder, unless data.yaml gives it; by default images in the source, or the source itself. The text
    file of an image has its path with the last directory `images` replaced by `labels`, or is beside it, or, with
    `images`, has its name in the labels of the source. An image without text file has no objects. Polygons are
    converted to their bounding boxes; keypoints (`kpt_shape` in data.yaml) follow a box and are not read.

    Raises UserError with file, line and value if something is malformed.
    """
    labels_folder = records.existing_folder(source / LABELS) or source
    source = yolo_root(source)
    path = source if source.is_file() else next((source / n for n in CONFIGS if (source / n).is_file()), None)
    config = read_class_list(source) if path is None else read_config(path, bad_items)
    if config.images and images is not None:
        raise UserError(f"--images {images}: {path} gives the image folders; change them there")
    files = config.images or _all_images(source if source.is_dir() else source.parent, images)
    labels = {path: _label_file(path, None if images is None else labels_folder / name) for path, name, _ in files}
    if not any(labels.values()):
        raise UserError(f"{source}: no image has a text file in labels/ or beside it; correct the path or --from")
    notes, empty = list(config.notes), list(labels.values()).count(None)
    if empty:
        notes.append(f"images without text file: {empty} of {len(labels)}; imported without objects")
    unused = _unused([label for label in labels.values() if label])
    if unused:
        notes.append(f"text files without image: {len(unused)}; left out; the first: {unused[0]}")
    parser, boxes = _LineParser(config, bad_items), {}
    for path, label in labels.items():
        with bad_items.item():
            boxes[path] = [] if label is None else parser.boxes(label, path)
    imported = [
        ImportedImage(path, name, boxes[path], str(labels[path] or path), split=split)
        for path, name, split in files
        if path in boxes
    ]
    return ImportedData(imported, config.class_names, notes=(*notes, *parser.notes()))


def _last(parts: Sequence[str], part: str) -> int:
    return len(parts) - 1 - parts[::-1].index(part)


def _all_images(source: Path, images: Path | None) -> list[tuple[Path, str, None]]:
    folder = images or records.existing_folder(source / "images") or source
    return [(folder / name, name, None) for name in ImageFiles.find(folder).names]


def _label_file(image: Path, other: Path | None) -> Path | None:
    """Return the text file of an image, None if there is none; other: where it may be too, with any suffix."""
    parts = list(image.parts)
    candidates = [path.with_suffix(".txt") for path in (image, other) if path is not None]
    if "images" in parts:
        parts[_last(parts, "images")] = LABELS
        candidates.insert(0, Path(*parts).with_suffix(".txt"))
    return next((path for path in candidates if path.is_file()), None)


def _unused(labels: list[Path]) -> list[Path]:
    """Return the files beside the labels that contain labels but belong to no image."""
    beside = {path for folder in {label.parent for label in labels} for path in folder.glob("*.txt")}
    return sorted(path for path in beside - set(labels) if path.name != "classes.txt" and _looks_like_labels(path))


def _looks_like_labels(path: Path) -> bool:
    line = next((line for _, line in records.read_lines(path)), "")
    return len(line.split()) >= 5 and _CLASS.fullmatch(line.split()[0]) is not None


class _LineParser:
    """Reads the lines of text files as boxes."""

    def __init__(self, config: YoloConfig, bad_items: BadItems) -> None:
        self.names, self.keypoints, self.bad_items = config.class_names, config.keypoints, bad_items
        self.polygons: list[list[float]] = []  # those that may be a box with keypoints

    def boxes(self, label: Path, image: Path) -> list[Box]:
        """Return the boxes of a text file."""
        header, boxes = read_header(image), []
        if header is None:
            raise UserError(f"{image}: damaged or not an image; remove it")
        for location, line in records.read_lines(label):
            with self.bad_items.item():
                name, (x1, y1, x2, y2), outline = self._object(line.split(), location)
                corners = (x1 * header.width, y1 * header.height, x2 * header.width, y2 * header.height)
                boxes.append(Box(name, corners, outline=outline))
        return boxes

    def notes(self) -> tuple[str, ...]:
        """Return a message if all polygons look like a box with keypoints in it."""
        counts = {len(polygon) for polygon in self.polygons}
        if len(counts) != 1 or min(counts) < MIN_POSE or not all(map(_may_be_pose, self.polygons)):
            return ()
        hint = "if they are x y w h and keypoints, add kpt_shape to data.yaml, as pose datasets have it"
        return (f"all {len(self.polygons)} polygons have {min(counts)} numbers: {hint}",)

    def _object(self, fields: list[str], location: str) -> tuple[str, tuple[float, float, float, float], str]:
        """Return the class name, the corners relative to the image, and the kind of outline."""
        category = _CLASS.fullmatch(fields[0])
        if category is None or int(category[1]) >= len(self.names):
            raise UserError(f"{location}: {fields[0]!r} is not a class index from 0 to {len(self.names) - 1}")
        values = self._coordinates(fields[1:], location)
        if len(values) == 4:
            x, y, w, h = values
            corners, outline = (x - w / 2, y - h / 2, x + w / 2, y + h / 2), "box"
        else:
            corners, outline = records.bounding_box(zip(values[::2], values[1::2])), "polygon"
            self.polygons.append(values)
        return self.names[int(category[1])], corners, outline

    def _coordinates(self, texts: list[str], location: str) -> list[float]:
        """Return x, y, w, h of a box, without its keypoints, or the x, y, ... of a polygon."""
        count = len(texts)
        if self.keypoints is not None:
            expected = 4 + self.keypoints[0] * self.keypoints[1]
            if count not in (4, expected):
                what = f"x y w h and {self.keypoints[0]} keypoints of {self.keypoints[1]} (kpt_shape)"
                raise UserError(f"{location}: {count} numbers after the class, expected {expected}: {what}")
        elif count != 4 and (count < 6 or count % 2):
            hint = "; are these predictions with a confidence?" if count == 5 else ""
            raise UserError(f"{location}: {count} numbers after the class, expected x y w h, or a polygon{hint}")
        values = [records.parse_number(text, location, "a coordinate") for text in texts]
        values = values[:4] if self.keypoints is not None else values
        for number, (text, value) in enumerate(zip(texts, values)):
            is_side = len(values) == 4 and number > 1
            records.require_fraction(value, text, location, 0.0 if is_side else -records.TOLERANCE)
        return values


def _may_be_pose(polygon: list[float]) -> bool:
    """Return whether all further numbers are points in the box of the first four, with or without a visibility."""
    (x, y, w, h), rest = polygon[:4], polygon[4:]
    for size in (2, 3):
        points = [rest[k : k + 2] for k in range(0, len(rest), size)] if len(rest) % size == 0 else []
        points = [point for point in points if point != [0, 0]]  # keypoints that are not labeled
        if points and all(abs(px - x) <= w / 2 and abs(py - y) <= h / 2 for px, py in points):
            return True
    return False
