"""Converts annotations to COCO: reads them, compares sizes with the image files, divides them into splits, writes."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.lenient_values import is_file_name
from ppdet_lite.data.annotations.statistics import format_statistics
from ppdet_lite.data.images.sizes import compare_sizes
from ppdet_lite.data.importing import csv_table, labelme, voc, yolo
from ppdet_lite.data.importing.coco_writer import write_splits
from ppdet_lite.data.importing.records import ImportedData, ImportedImage, parse_class_name, read_lines
from ppdet_lite.data.importing.splits import Splits, split


def import_data(
    source_format: Literal["voc", "yolo", "labelme", "csv"],
    source: Path,
    output: Path,
    images: Path | None = None,
    fractions: Sequence[float] | None = None,
    lists: Sequence[Path] = (),
    seed: int = 0,
    transfer: Literal["copy", "link", "leave"] = "copy",
    classes: Path | None = None,
    difficult: Literal["crowd", "keep", "drop"] | None = None,
    voc_origin: Literal[0, 1] | None = None,
) -> dict[str, CocoDataset]:
    """Write OUTPUT/annotations/instances_SPLIT.json for each split, and the images into OUTPUT/SPLIT.

    images: the image folder, if the source does not give it. fractions, lists, seed: see `splits.split`.
    transfer: copy the images, link to them, or leave them where they are.
    classes: a file with the class names in order, one on each line; by default the order is YOLO's own or alphabetical.
    difficult: convert objects marked as difficult to crowd regions, which training and evaluation ignore as VOC does
        (the default); or keep them as ordinary objects; or drop them. They have `difficult: 1` in the file.
    voc_origin: see `voc.read`; 0 by default.

    All splits have the same categories, with ids from 1. The folder appears complete or not at all. Returns the
    datasets as training reads them. Raises UserError with file, line and value if something is malformed.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists and is not empty; choose another output")
    data = _read(source_format, source, images, classes, difficult, voc_origin)
    measured, notes = _with_file_sizes(data.images)
    splits, left_out = split(data._replace(images=measured), fractions, lists, seed)
    names = _class_names(data, splits, classes)
    notes += [*data.notes, *left_out, *_similar_names(names), *_difficult_note(data, difficult or "crowd")]
    for note in notes:
        get_logger().warning("%s", note)
    files = write_splits(splits, names, output, transfer, difficult or "crowd")
    datasets = {name: CocoDataset(str(folder), str(file)) for name, (folder, file) in files.items()}
    for dataset in datasets.values():
        for line in dataset.problem_messages:
            get_logger().info("%s", line)
    statistics = {name: dataset.statistics() for name, dataset in datasets.items()}
    get_logger().info("written:\n%s", format_statistics(statistics, names))
    return datasets


def _read(
    source_format: str,
    source: Path,
    images: Path | None,
    classes: Path | None,
    difficult: str | None,
    origin: int | None,
) -> ImportedData:
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; correct the path")
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: no such folder; correct the path")
    if origin is not None and source_format != "voc":
        raise UserError(f"--voc-origin {origin} applies only to VOC; remove it with --from {source_format}")
    if classes is not None and source_format == "yolo":
        raise UserError("--classes: YOLO takes the classes from data.yaml or classes.txt; change them there")
    if source_format == "voc":
        data = voc.read(source, images, origin or 0)
    else:
        data = {"yolo": yolo.read, "labelme": labelme.read, "csv": csv_table.read}[source_format](source, images)
    has_flags = any(box.difficult is not None for image in data.images for box in image.boxes)
    if difficult is not None and not has_flags:
        raise UserError(f"--difficult {difficult}: {source} does not mark objects as difficult; remove the option")
    return data


def _with_file_sizes(images: Sequence[ImportedImage]) -> tuple[list[ImportedImage], list[str]]:
    """Return the images with the sizes of their files. Raises UserError if an annotated size differs."""
    seen: dict[str, str] = {}
    for image in images:
        if not is_file_name(image.name):
            raise UserError(f"{image.location}: the image's name is not UTF-8: {image.name!r}; rename it")
        path = os.path.realpath(image.path)
        if path in seen:
            raise UserError(f"{_owner(image)}: {image.path} is already the image of {seen[path]}")
        seen[path] = _owner(image)
    annotated = np.array([image.size or (0, 0) for image in images], np.int64)
    extents = np.array([np.max([box.corners[:1:-1] for box in image.boxes] or [(0, 0)], axis=0) for image in images])
    sizes, kinds = compare_sizes([image.path for image in images], annotated, extents)
    unreadable = np.flatnonzero((sizes <= 0).any(1))
    if len(unreadable):
        path = images[unreadable[0]].path
        raise UserError(f"{path}: damaged or not an image; remove it{_more(unreadable)}")
    for kind, hint in (("size_other", "correct one"), ("size_turned", "annotate it as displayed, after EXIF rotation")):
        if kind in kinds:
            image, (h, w) = images[kinds[kind][0]], sizes[kinds[kind][0]].tolist()
            both = f"has size {image.size[1]}x{image.size[0]}, but {image.path} is {w}x{h} (width x height)"
            raise UserError(f"{image.location}: {both}; {hint}{_more(kinds[kind])}")
    swapped, notes = kinds.get("size_swapped", []), []
    if swapped:
        count = f"images with swapped width and height: {len(swapped)} of {len(images)}"
        notes = [f"{count}; taken from the files; the first: {images[swapped[0]].location}"]
    return [image._replace(size=tuple(size)) for image, size in zip(images, sizes.tolist(), strict=True)], notes


def _owner(image: ImportedImage) -> str:
    return image.location + (f" ({image.split})" if image.split else "")


def _more(rows: Sequence[int]) -> str:
    return f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""


def _class_names(data: ImportedData, splits: Splits, classes: Path | None) -> list[str]:
    """Return the class names of all splits in order."""
    names = list(data.class_names or sorted({box.name for image in data.images for box in image.boxes}))
    if not any(image.boxes for images in splits.values() for image in images):
        raise UserError("no image has objects; correct the path or --images")
    if classes is None:
        return names
    given: list[str] = []
    for location, line in read_lines(classes):
        name = parse_class_name(line, location)
        if name in given:
            raise UserError(f"{location}: the class {name!r} is repeated")
        given.append(name)
    for image in data.images:
        for box in image.boxes:
            if box.name not in given:
                raise UserError(f"{image.location}: the class {box.name!r} is not in {classes}")
    return given


def _difficult_note(data: ImportedData, action: str) -> list[str]:
    """Return a message on the objects that are marked as difficult, if there are any."""
    marked = [bool(box.difficult) for image in data.images for box in image.boxes]
    results = {"crowd": "converted to crowd regions, which are ignored", "keep": "kept as objects", "drop": "left out"}
    return [f"objects marked as difficult: {sum(marked)} of {len(marked)}; {results[action]}"] if any(marked) else []


def _similar_names(names: Sequence[str]) -> list[str]:
    """Return a message for each group of class names that differ only in case, spaces, dashes or underscores."""
    keys = {name: "".join(letter for letter in name.lower() if letter not in " -_") for name in names}
    counts = Counter(keys.values())
    return [
        f"classes with nearly equal names: {', '.join(repr(name) for name in names if keys[name] == key)}"
        for key, count in counts.items()
        if count > 1
    ]
