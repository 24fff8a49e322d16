"""YOLO: a text file for each image, `class x y w h` a line, in shares of the image; data.yaml or classes.txt."""

import re
from collections.abc import Sequence
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.files import ImageFiles
from ppdet_lite.data.images.sizes import read_header
from ppdet_lite.data.importing.records import (
    Box,
    Found,
    Picture,
    bounds,
    existing_folder,
    lines_of,
    number,
)
from ppdet_lite.data.importing.yolo_config import CONFIGS, NAMES, names_of_list, read_config

LABELS = "labels"
_CLASS = re.compile(r"([0-9]{1,9})(?:\.0*)?")  # pandas writes 1.0
BEYOND = 1e-3  # of the image by which a rounded share may reach beyond 0 and 1


def read(source: Path, images: Path | None = None) -> Found:
    """Read a folder with data.yaml (its train, val and test), or with classes.txt; by itself, its labels or that YAML.

    images: where the images are, if no data.yaml says it; otherwise in images of the source, or anywhere in it.
    The text file of an image is at its path with the last `images` as `labels`, or beside it. Without one an image has
    no objects. Lines of polygons become the boxes around them.

    Raises UserError with file, line and value for what is malformed.
    """
    source = _root(source)
    config = source if source.is_file() else next((source / n for n in CONFIGS if (source / n).is_file()), None)
    names, files, notes = (names_of_list(source), [], []) if config is None else read_config(config)
    if files and images is not None:
        raise UserError(f"--images {images}: {config} says where the images are; change it there")
    files = files or _all_images(source if source.is_dir() else source.parent, images)
    labels = [_label_file(path) for path, _, _ in files]
    if not any(labels):
        raise UserError(f"{source}: no image has a text file in labels/ or beside it; correct the path, or --from")
    empty = labels.count(None)
    if empty:
        notes.append(f"{empty} of {len(files)} images have no text file: taken as without objects")
    unused = _unused([label for label in labels if label])
    if unused:
        notes.append(f"{len(unused)} text files have no image: left out; the first: {unused[0]}")
    pictures = [
        Picture(path, name, [] if label is None else _boxes(label, path, names), str(label or path), None, split)
        for (path, name, split), label in zip(files, labels, strict=True)
    ]
    return Found(pictures, names, (), tuple(notes))


def _root(source: Path) -> Path:
    """The folder that a folder of labels is in, unless that has what names the classes."""
    if LABELS not in source.parts or any((source / name).is_file() for name in (*CONFIGS, *NAMES)):
        return source
    return Path(*source.parts[: _last(source.parts, LABELS)])


def _last(parts: Sequence[str], part: str) -> int:
    return len(parts) - 1 - parts[::-1].index(part)


def _all_images(source: Path, images: Path | None) -> list[tuple[Path, str, None]]:
    folder = images or existing_folder(source / "images") or source
    return [(folder / name, name, None) for name in ImageFiles.find(folder).names]


def _label_file(image: Path) -> Path | None:
    """The text file of an image, None where there is none."""
    parts = list(image.parts)
    tries = [image.with_suffix(".txt")]
    if "images" in parts:
        parts[_last(parts, "images")] = LABELS
        tries.insert(0, Path(*parts).with_suffix(".txt"))
    return next((path for path in tries if path.is_file()), None)


def _unused(labels: list[Path]) -> list[Path]:
    """Text files beside the labels that are no image's, nor a list of classes."""
    beside = {path for folder in {label.parent for label in labels} for path in folder.glob("*.txt")}
    return sorted(path for path in beside - set(labels) if path.name != "classes.txt" and _looks_like_labels(path))


def _looks_like_labels(path: Path) -> bool:
    line = next((line for _, line in lines_of(path)), "")
    return len(line.split()) >= 5 and _CLASS.fullmatch(line.split()[0]) is not None


def _boxes(label: Path, image: Path, names: list[str]) -> list[Box]:
    header = read_header(image)
    if header is None:
        raise UserError(f"{image}: cannot be read as an image, it is damaged or none; take it out")
    return [_box(line.split(), place, header.height, header.width, names) for place, line in lines_of(label)]


def _box(fields: list[str], place: str, height: int, width: int, names: list[str]) -> Box:
    category = _CLASS.fullmatch(fields[0])
    if category is None or int(category[1]) >= len(names):
        raise UserError(f"{place}: {fields[0]!r} is no class; there are 0 to {len(names) - 1}")
    count = len(fields) - 1
    if count != 4 and (count < 6 or count % 2):
        more = "; is it a confidence, of predictions?" if count == 5 else ""
        raise UserError(f"{place}: {count} numbers after the class, expected x y w h, or a polygon{more}")
    shares = [number(text, place, "a coordinate") for text in fields[1:]]
    for text, share in zip(fields[1:], shares, strict=True):
        if not -BEYOND <= share <= 1 + BEYOND:
            raise UserError(f"{place}: {text} is no share of the image, 0 to 1; are these pixels?")
    if count == 4:
        x, y, w, h = shares
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    else:
        corners = bounds(zip(shares[::2], shares[1::2]))
    x1, y1, x2, y2 = corners
    return Box(names[int(category[1])], (x1 * width, y1 * height, x2 * width, y2 * height))
