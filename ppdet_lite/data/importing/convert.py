"""Annotations in another format written as COCO: read, compared with the image files, divided, and written whole."""

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
from ppdet_lite.data.images.sizes import compare
from ppdet_lite.data.importing import csv_table, labelme, voc, yolo
from ppdet_lite.data.importing.coco_writer import write_splits
from ppdet_lite.data.importing.records import Found, Picture, class_name, lines_of
from ppdet_lite.data.importing.splits import Splits, split


def import_data(
    form: Literal["voc", "yolo", "labelme", "csv"],
    source: Path,
    output: Path,
    images: Path | None = None,
    shares: Sequence[float] | None = None,
    lists: Sequence[Path] = (),
    seed: int = 0,
    transfer: Literal["copy", "link", "leave"] = "copy",
    classes: Path | None = None,
    difficult: Literal["crowd", "keep", "drop"] | None = None,
    voc_origin: Literal[0, 1] | None = None,
) -> dict[str, CocoDataset]:
    """Write OUTPUT/annotations/instances_SPLIT.json for each split, and the images into OUTPUT/SPLIT.

    images: the folder of images where the source does not say it. shares, lists, seed: see `splits.split`.
    transfer: copy the images, link to them, or leave them where they are.
    classes: a file with a class name on each line, their order; by itself it is YOLO's, or that of their letters.
    difficult: objects that are marked so become crowd regions, which neither training nor evaluation counts, as VOC
        has it; or are kept as others; or are dropped. They have `difficult: 1` in the file. Left open, crowd.
    voc_origin: see `voc.read`. Left open, 0.

    All splits have the same categories, with ids from 1. The folder appears whole or not at all; the sets are returned
    as training reads them. Raises UserError, naming file, line and value, for what is malformed.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists and is not empty; choose another output")
    found = _read(form, source, images, classes, difficult, voc_origin)
    pictures, notes = _measured(found.pictures)
    splits, left_out = split(found._replace(pictures=pictures), shares, lists, seed)
    names = _class_names(found, splits, classes)
    notes += [*found.notes, *left_out, *_alike(names), *_difficult(found, difficult or "crowd")]
    for note in notes:
        get_logger().warning("%s", note)
    files = write_splits(splits, names, output, transfer, difficult or "crowd")
    sets = {name: CocoDataset(str(folder), str(file)) for name, (folder, file) in files.items()}
    for dataset in sets.values():
        for line in dataset.notes:
            get_logger().info("%s", line)
    get_logger().info("written:\n%s", format_statistics({key: each.statistics() for key, each in sets.items()}, names))
    return sets


def _read(
    form: str, source: Path, images: Path | None, classes: Path | None, difficult: str | None, origin: int | None
) -> Found:
    if not source.exists():
        raise UserError(f"{source}: no such file or folder; correct the path")
    if images is not None and not images.is_dir():
        raise UserError(f"--images {images}: no such folder; correct the path")
    if origin is not None and form != "voc":
        raise UserError(f"--voc-origin {origin} is of VOC alone; leave it out with --from {form}")
    if classes is not None and form == "yolo":
        raise UserError("--classes: YOLO's own files say the classes: data.yaml or classes.txt; write them there")
    if form == "voc":
        found = voc.read(source, images, origin or 0)
    else:
        found = {"yolo": yolo.read, "labelme": labelme.read, "csv": csv_table.read}[form](source, images)
    says = any(box.difficult is not None for picture in found.pictures for box in picture.boxes)
    if difficult is not None and not says:
        raise UserError(f"--difficult {difficult}: nothing in {source} says what is difficult; leave it out")
    return found


def _measured(pictures: Sequence[Picture]) -> tuple[list[Picture], list[str]]:
    """The images with the sizes of their files, as they are shown; UserError where a said size is another."""
    seen: dict[str, str] = {}
    for picture in pictures:
        if not is_file_name(picture.name):
            raise UserError(f"{picture.place}: the image's name is not UTF-8: {picture.name!r}; rename it")
        path = os.path.realpath(picture.path)
        if path in seen:
            raise UserError(f"{_owner(picture)}: {picture.path} is the image of {seen[path]} already")
        seen[path] = _owner(picture)
    said = np.array([picture.size or (0, 0) for picture in pictures], np.int64)
    reach = np.array([np.max([box.corners[:1:-1] for box in p.boxes] or [(0, 0)], axis=0) for p in pictures])
    sizes, kinds = compare([picture.path for picture in pictures], said, reach)
    unreadable = np.flatnonzero((sizes <= 0).any(1))
    if len(unreadable):
        path = pictures[unreadable[0]].path
        raise UserError(f"{path}: cannot be read as an image, it is damaged or none; take it out{_more(unreadable)}")
    for kind, hint in (("size_other", "correct one"), ("size_turned", "annotate it as its EXIF rotation shows it")):
        if kind in kinds:
            picture, (h, w) = pictures[kinds[kind][0]], sizes[kinds[kind][0]].tolist()
            both = f"says {picture.size[1]}x{picture.size[0]}, but {picture.path} is {w}x{h} (width x height)"
            raise UserError(f"{picture.place}: {both}; {hint}{_more(kinds[kind])}")
    swapped, notes = kinds.get("size_swapped", []), []
    if swapped:
        what = f"{len(swapped)} of {len(pictures)} images have width and height swapped"
        notes = [f"{what}: taken from the files; the first: {pictures[swapped[0]].place}"]
    return [picture._replace(size=tuple(size)) for picture, size in zip(pictures, sizes.tolist(), strict=True)], notes


def _owner(picture: Picture) -> str:
    return picture.place + (f" ({picture.split})" if picture.split else "")


def _more(places: Sequence[int]) -> str:
    return f" ({len(places) - 1} more such)" if len(places) > 1 else ""


def _class_names(found: Found, splits: Splits, classes: Path | None) -> list[str]:
    """The classes of all splits in their order."""
    names = list(found.class_names or sorted({box.name for picture in found.pictures for box in picture.boxes}))
    if not any(picture.boxes for pictures in splits.values() for picture in pictures):
        raise UserError("no image has an object; correct the path, or --images")
    if classes is None:
        return names
    given: list[str] = []
    for place, line in lines_of(classes):
        name = class_name(line, place)
        if name in given:
            raise UserError(f"{place}: the class {name!r} is there twice")
        given.append(name)
    for picture in found.pictures:
        for box in picture.boxes:
            if box.name not in given:
                raise UserError(f"{picture.place}: the class {box.name!r} is not in {classes}")
    return given


def _difficult(found: Found, what: str) -> list[str]:
    """A line for objects that are marked as difficult."""
    marked = [bool(box.difficult) for picture in found.pictures for box in picture.boxes]
    becomes = {"crowd": "crowd regions, neither trained nor counted", "keep": "kept as others", "drop": "left out"}
    return [f"{sum(marked)} of {len(marked)} objects are marked as difficult: {becomes[what]}"] if any(marked) else []


def _alike(names: Sequence[str]) -> list[str]:
    """A line for class names that differ only in case, spaces or dashes."""
    keys = {name: "".join(letter for letter in name.lower() if letter not in " -_") for name in names}
    counts = Counter(keys.values())
    return [
        f"classes with nearly one name: {', '.join(repr(name) for name in names if keys[name] == key)}"
        for key, count in counts.items()
        if count > 1
    ]
