"""YOLO: a text file for each image with lines `class x y w h`, relative to the image; data.yaml or classes.txt."""

import re
from collections.abc import Sequence
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.files import ImageFiles
from ppdet_lite.data.images.sizes import read_header
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.records import Box, ImportedData, ImportedImage
from ppdet_lite.data.importing.yolo_config import CONFIGS, NAMES, read_class_list, read_config

LABELS = "labels"
_CLASS = re.compile(r"([0-9]{1,9})(?:\.0*)?")  # pandas writes 1.0
TOLERANCE = 1e-3  # by which rounded relative coordinates may be below 0 or above 1


def read(source: Path, images: Path | None = None) -> ImportedData:
    """Read a folder with data.yaml (train, val, test) or classes.txt; the source may also be its labels or data.yaml.

    images: the image folder, unless data.yaml gives it; by default images in the source, or the source itself. The text
    file of an image has its path with the last directory `images` replaced by `labels`, or is beside it. An image
    without text file has no objects. Polygons are converted to their bounding boxes.

    Raises UserError with file, line and value if something is malformed.
    """
    source = _root(source)
    config = source if source.is_file() else next((source / n for n in CONFIGS if (source / n).is_file()), None)
    names, files, notes = (read_class_list(source), [], []) if config is None else read_config(config)
    if files and images is not None:
        raise UserError(f"--images {images}: {config} gives the image folders; change them there")
    files = files or _all_images(source if source.is_dir() else source.parent, images)
    labels = [_label_file(path) for path, _, _ in files]
    if not any(labels):
        raise UserError(f"{source}: no image has a text file in labels/ or beside it; correct the path or --from")
    empty = labels.count(None)
    if empty:
        notes.append(f"images without text file: {empty} of {len(files)}; imported without objects")
    unused = _unused([label for label in labels if label])
    if unused:
        notes.append(f"text files without image: {len(unused)}; left out; the first: {unused[0]}")
    imported = [
        ImportedImage(path, name, [] if label is None else _boxes(label, path, names), str(label or path), None, split)
        for (path, name, split), label in zip(files, labels, strict=True)
    ]
    return ImportedData(imported, names, (), tuple(notes))


def _root(source: Path) -> Path:
    """Return the folder that contains the labels folder of the source, unless the source itself has the class names."""
    if LABELS not in source.parts or any((source / name).is_file() for name in (*CONFIGS, *NAMES)):
        return source
    return Path(*source.parts[: _last(source.parts, LABELS)])


def _last(parts: Sequence[str], part: str) -> int:
    return len(parts) - 1 - parts[::-1].index(part)


def _all_images(source: Path, images: Path | None) -> list[tuple[Path, str, None]]:
    folder = images or records.existing_folder(source / "images") or source
    return [(folder / name, name, None) for name in ImageFiles.find(folder).names]


def _label_file(image: Path) -> Path | None:
    """Return the text file of an image, None if there is none."""
    parts = list(image.parts)
    candidates = [image.with_suffix(".txt")]
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


def _boxes(label: Path, image: Path, names: list[str]) -> list[Box]:
    header = read_header(image)
    if header is None:
        raise UserError(f"{image}: damaged or not an image; remove it")
    return [
        _box(line.split(), location, header.height, header.width, names) for location, line in records.read_lines(label)
    ]


def _box(fields: list[str], location: str, height: int, width: int, names: list[str]) -> Box:
    category = _CLASS.fullmatch(fields[0])
    if category is None or int(category[1]) >= len(names):
        raise UserError(f"{location}: {fields[0]!r} is not a class index from 0 to {len(names) - 1}")
    count = len(fields) - 1
    if count != 4 and (count < 6 or count % 2):
        hint = "; are these predictions with a confidence?" if count == 5 else ""
        raise UserError(f"{location}: {count} numbers after the class, expected x y w h, or a polygon{hint}")
    values = [records.parse_number(text, location, "a coordinate") for text in fields[1:]]
    for text, value in zip(fields[1:], values, strict=True):
        if not -TOLERANCE <= value <= 1 + TOLERANCE:
            raise UserError(f"{location}: {text} is not between 0 and 1, relative to the image; is it in pixels?")
    if count == 4:
        x, y, w, h = values
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    else:
        corners = records.bounding_box(zip(values[::2], values[1::2]))
    x1, y1, x2, y2 = corners
    return Box(names[int(category[1])], (x1 * width, y1 * height, x2 * width, y2 * height))
