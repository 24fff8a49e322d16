"""Writes COCO files and their images into a folder, atomically."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import Box, ImportedImage
from ppdet_lite.data.importing.splits import Splits
from ppdet_lite.storage.files import write_error, write_json

ANNOTATIONS = "annotations"  # the folder of the COCO files


def write_splits(
    splits: Splits, names: Sequence[str], output: Path, transfer: str, difficult: str, bad_items: BadItems
) -> dict[str, tuple[Path, Path]]:
    """Write a folder that appears complete or not at all; return (image folder, annotation file) of each split."""
    partial = Path(os.path.abspath(output))
    partial = partial.with_name(f".{partial.name}.{os.getpid()}.partial")
    files = {}
    try:
        for name, images in splits.items():
            root = Path(os.path.commonpath([os.path.abspath(image.path.parent) for image in images]))
            file_names = [os.path.relpath(os.path.abspath(image.path), root).replace(os.sep, "/") for image in images]
            file = Path(ANNOTATIONS, f"instances_{name}.json")
            write_json(partial / file, _content(images, file_names, names, difficult))
            if transfer != "leave":
                _transfer(images, [partial / name / file_name for file_name in file_names], transfer)
            files[name] = (root if transfer == "leave" else output / name, output / file)
        bad_items.write(partial)
        if output.exists():
            output.rmdir()  # empty; rename does not replace it on Windows
        partial.rename(output)
    except OSError as error:
        raise write_error(output, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return files


def _transfer(images: Sequence[ImportedImage], targets: Sequence[Path], transfer: str) -> None:
    for image, target in zip(images, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        if transfer == "link" and image.extracted is None:
            target.symlink_to(image.file.resolve())
        else:
            shutil.copyfile(image.file, target)


def _content(
    images: Sequence[ImportedImage], file_names: Sequence[str], names: Sequence[str], difficult: str
) -> dict[str, Any]:
    """Return the content of a COCO file."""
    categories = {name: number for number, name in enumerate(names, start=1)}
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": number, "name": name} for name, number in categories.items()]
    for image_id, (image, file_name) in enumerate(zip(images, file_names, strict=True), start=1):
        height, width = image.size or (0, 0)
        content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        boxes = [(box, _box_fields(box, difficult)) for box in image.boxes if not box.difficult or difficult != "drop"]
        # COCO's crowd regions are of one class each
        regions = [Box(name, corners) for corners in image.ignored for name in names]
        boxes += [(region, _box_fields(region, difficult) | {"iscrowd": 1}) for region in regions]
        for box, fields in boxes:
            record = {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": categories[box.name]}
            content["annotations"].append(record | fields)
    return content


def _box_fields(box: Box, difficult: str) -> dict[str, Any]:
    x1, y1, x2, y2 = box.corners
    width, height = x2 - x1, y2 - y1
    crowd = int(bool(box.difficult) and difficult == "crowd")
    record = {"bbox": [x1, y1, width, height], "area": width * height, "iscrowd": crowd}
    record |= {"difficult": 1} if box.difficult else {}
    return record | ({"attributes": {"rotation": box.rotation}} if box.rotation else {})
