"""Converts annotations to COCO: reads them, compares sizes with the image files, divides them into splits, writes."""

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.lenient_values import is_file_name
from ppdet_lite.data.annotations.objects import find_fractions
from ppdet_lite.data.annotations.statistics import format_statistics
from ppdet_lite.data.images.sizes import compare_sizes
from ppdet_lite.data.importing import csv_table, cvat, kitti, labelme, openimages, voc, yolo
from ppdet_lite.data.importing.bad_items import FILE, BadItems
from ppdet_lite.data.importing.coco_writer import write_splits
from ppdet_lite.data.importing.records import Box, ImportedData, ImportedImage, parse_class_name, read_lines
from ppdet_lite.data.importing.splits import split


def import_data(
    source_format: Literal["voc", "yolo", "labelme", "cvat", "kitti", "openimages", "csv"],
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
    skip_bad: bool = False,
    default_fractions: Sequence[float] | None = None,
) -> dict[str, CocoDataset]:
    """Write OUTPUT/annotations/instances_SPLIT.json for each split, and the images into OUTPUT/SPLIT.

    images: the image folder, if the source does not give it. fractions, lists, seed: see `splits.split`.
    transfer: copy the images, link to them, or leave them where they are.
    classes: a file with the class names in order, one on each line; by default the order is YOLO's own or alphabetical.
    difficult: convert objects marked as difficult to crowd regions, which training and evaluation ignore as VOC does
        (the default); or keep them as ordinary objects; or drop them. They have `difficult: 1` in the file.
    voc_origin: see `voc.read`; 0 by default.
    skip_bad: leave out what cannot be read, such as an image, an object or an entry of a list, and list each with its
        file and the reason in OUTPUT/skipped.csv.
    default_fractions: like fractions, but only for a source that has no splits, or nothing else than train.

    All splits have the same categories, with ids from 1. The folder appears complete or not at all. Returns the
    datasets as training reads them. Raises UserError with file, line and value if something is malformed.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: exists and is not empty; choose another output")
    bad_items, difficult_action = BadItems(skip_bad), difficult or "crowd"
    with tempfile.TemporaryDirectory() as scratch:
        data = _read(source_format, source, images, classes, difficult, voc_origin, bad_items, Path(scratch))
        data = _distinct_images(data, source, bool(fractions or lists), bad_items)
        measured, notes = _with_file_sizes(data.images, bad_items)
        _refuse_leaving(measured, transfer)
        data = data._replace(images=measured)
        names, data = _class_names(data, classes, bad_items)
        _require_objects(data.images, bad_items)
        splits, left_out = split(data, fractions, lists, seed, bad_items)
        if default_fractions is not None and len(splits) == 1:
            splits, left_out = split(data, default_fractions, (), seed, bad_items)
        _require_objects([image for chosen in splits.values() for image in chosen], bad_items)
        for chosen in splits.values():
            _refuse_fractions(chosen)
        notes += [*data.notes, *left_out, *_similar_names(names), *_box_notes(data.images, difficult_action)]
        for note in notes:
            get_logger().warning("%s", note)
        files = write_splits(splits, names, output, transfer, difficult_action, bad_items)
    if bad_items.messages:
        get_logger().warning("%s lists what could not be read%s", output / FILE, bad_items.remark())
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
    bad_items: BadItems,
    scratch: Path,
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
        data = voc.read(source, images, bad_items, origin or 0)
    elif source_format == "labelme":
        data = labelme.read(source, images, bad_items, scratch)
    else:
        readers = {"yolo": yolo, "cvat": cvat, "kitti": kitti, "openimages": openimages, "csv": csv_table}
        data = readers[source_format].read(source, images, bad_items)
    has_flags = any(box.difficult is not None for image in data.images for box in image.boxes)
    if difficult is not None and not has_flags:
        raise UserError(f"--difficult {difficult}: {source} does not mark objects as difficult; remove the option")
    return data


def _distinct_images(data: ImportedData, source: Path, is_divided: bool, bad_items: BadItems) -> ImportedData:
    """Return the data with each image once. Raises UserError for images in two splits, unless they are divided anew."""
    kept: dict[str, ImportedImage] = {}
    repeated, shared = 0, []
    for image in data.images:
        first = kept.setdefault(os.path.realpath(image.path), image)
        if first is image:
            continue
        if os.path.realpath(first.location) != os.path.realpath(image.location):
            with bad_items.item():
                raise UserError(f"{image.location}: {image.path} is already the image of {first.location}")
        elif first.split == image.split or is_divided:
            repeated += 1
        else:
            shared.append((first, image))
    if shared:
        (first, image), count = shared[0], f"{len(shared)} image{'s' if len(shared) > 1 else ''}"
        hint = "give each split its own, or divide them, as by --split 0.8/0.2"
        raise UserError(f"{source}: {first.split} and {image.split} share {count}, such as {image.path}; {hint}")
    notes = (f"images that are listed again: {repeated}; imported once",) if repeated and not is_divided else ()
    return data._replace(images=list(kept.values()), notes=(*data.notes, *notes))


def _with_file_sizes(images: Sequence[ImportedImage], bad_items: BadItems) -> tuple[list[ImportedImage], list[str]]:
    """Return the images with the sizes of their files, and outlines clipped to them.

    Raises UserError if an annotated size differs.
    """
    annotated = np.array([image.size or (0, 0) for image in images], np.int64).reshape(-1, 2)
    extents = np.array([np.max([box.corners[:1:-1] for box in image.boxes] or [(0, 0)], axis=0) for image in images])
    sizes, kinds = compare_sizes([image.file for image in images], annotated, extents)
    kind_of = {row: kind for kind, rows in kinds.items() for row in rows}
    measured, clipped = [], 0
    for row, image in enumerate(images):
        with bad_items.item():
            _check_file(image, sizes[row].tolist(), kind_of.get(row))
            boxes = [_clipped(box, *sizes[row].tolist()) for box in image.boxes]
            clipped += sum(new != old for new, old in zip(boxes, image.boxes, strict=True))
            measured.append(image._replace(size=tuple(sizes[row].tolist()), boxes=boxes))
    swapped, notes = kinds.get("size_swapped", []), []
    if swapped:
        count = f"images with swapped width and height: {len(swapped)} of {len(images)}"
        notes = [f"{count}; taken from the files; the first: {images[swapped[0]].location}"]
    if clipped:
        outlines = sum(box.outline != "box" for image in measured for box in image.boxes)
        notes.append(f"polygons and other outlines that reach beyond the image: {clipped} of {outlines}; clipped")
    return measured, notes


def _check_file(image: ImportedImage, size: Sequence[int], kind: str | None) -> None:
    """Raise UserError if an image file is unusable; kind: the problem of its annotated size."""
    if not is_file_name(image.name):
        raise UserError(f"{image.location}: the image's name is not UTF-8: {image.name!r}; rename it")
    height, width = size
    if min(size) <= 0:
        raise UserError(f"{image.path}: damaged or not an image; remove it")
    hint = {"size_other": "correct one", "size_turned": "annotate it as displayed, after EXIF rotation"}.get(kind or "")
    if hint is not None and image.size is not None:
        both = f"has size {image.size[1]}x{image.size[0]}, but {image.path} is {width}x{height} (width x height)"
        raise UserError(f"{image.location}: {both}; {hint}")


def _clipped(box: Box, height: int, width: int) -> Box:
    """Return a box; the box around an outline is clipped to the image, since only its visible part counts."""
    if box.outline == "box":
        return box
    x1, y1, x2, y2 = (min(max(value, 0.0), float(side)) for value, side in zip(box.corners, (width, height) * 2))
    return box._replace(corners=(x1, y1, x2, y2))


def _require_objects(images: Sequence[ImportedImage], bad_items: BadItems) -> None:
    if not any(image.boxes for image in images):
        raise UserError(f"no image has objects; correct the path or --images{bad_items.remark()}")


def _refuse_leaving(images: Sequence[ImportedImage], transfer: str) -> None:
    image = next((image for image in images if image.extracted is not None), None)
    if image is not None and transfer == "leave":
        raise UserError(f"--transfer leave: {image.location} contains its image, which has no file; use copy or link")


def _refuse_fractions(images: Sequence[ImportedImage]) -> None:
    """Raise UserError if most boxes are fractions of the size of their image instead of pixels."""
    boxes = [(image, *box.corners) for image in images for box in image.boxes]
    xywh = np.array([(x1, y1, x2 - x1, y2 - y1) for _, x1, y1, x2, y2 in boxes], float).reshape(-1, 4)
    fractions, most = find_fractions(xywh, np.array([image.size for image, *_ in boxes], int).reshape(-1, 2))
    if most:
        image, *corners = boxes[int(np.argmax(fractions))]
        count = f"{fractions.sum()} of {len(boxes)} boxes have only values from 0 to 1, the first {corners}"
        raise UserError(f"{image.location}: {count}; are they fractions of the image's size? convert them to pixels")


def _class_names(data: ImportedData, classes: Path | None, bad_items: BadItems) -> tuple[list[str], ImportedData]:
    """Return the class names of all splits in order, and the data with the objects of these classes."""
    used = {box.name for image in data.images for box in image.boxes}
    if classes is None:
        return list(data.class_names or sorted(used)), data
    given: list[str] = []
    for location, line in read_lines(classes):
        name = parse_class_name(line, location)
        if name in given:
            raise UserError(f"{location}: the class {name!r} is repeated")
        if name in used or not (name.startswith("#") or name in (labelme.IGNORE, labelme.BACKGROUND)):
            given.append(name)
    images = []
    for image in data.images:
        boxes = []
        for box in image.boxes:
            with bad_items.item():
                if box.name not in given:
                    raise UserError(f"{image.location}: the class {box.name!r} is not in {classes}")
                boxes.append(box)
        images.append(image._replace(boxes=boxes))
    return given, data._replace(images=images)


def _box_notes(images: Sequence[ImportedImage], difficult: str) -> list[str]:
    """Return messages on the outlines, the objects that are marked as difficult and the regions to ignore."""
    boxes, notes = [box for image in images for box in image.boxes], []
    outlines = Counter(box.outline for box in boxes if box.outline != "box")
    if outlines:
        kinds = ", ".join(f"{outlines[kind]} of kind {kind}" for kind in sorted(outlines))
        notes.append(f"objects outlined by other shapes than boxes: {kinds}; imported as the boxes around them")
    marked = sum(bool(box.difficult) for box in boxes)
    results = {"crowd": "converted to crowd regions, which are ignored", "keep": "kept as objects", "drop": "left out"}
    notes += [f"objects marked as difficult: {marked} of {len(boxes)}; {results[difficult]}"] if marked else []
    regions = sum(len(image.ignored) for image in images)
    notes += [f"regions to ignore: {regions}; written as crowd regions of each class"] if regions else []
    return notes


def _similar_names(names: Sequence[str]) -> list[str]:
    """Return a message for each group of class names that differ only in case, spaces, dashes or underscores."""
    keys = {name: "".join(letter for letter in name.lower() if letter not in " -_") for name in names}
    counts = Counter(keys.values())
    return [
        f"classes with nearly equal names: {', '.join(repr(name) for name in names if keys[name] == key)}"
        for key, count in counts.items()
        if count > 1
    ]
