"""Write a repaired copy of a COCO file. Everything that needs no repair is copied unchanged."""

import itertools
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.coco_content import Annotations
from ppdet_lite.data.annotations.lenient_values import parse_integer
from ppdet_lite.data.annotations.objects import MIN_SIDE, are_pixels
from ppdet_lite.data.checking.boxes import duplicate_boxes
from ppdet_lite.data.checking.check import Check, ReadSet, SetCheck, check, check_for_training, check_set, print_check
from ppdet_lite.data.checking.readable_part import load_content
from ppdet_lite.storage.files import output_file


def check_file(annotations: str, images: str, fix: Path | None = None, corners: bool = False) -> Check:
    """Check an annotation file as a training set and print the result; with `fix`, write and check a repaired copy too.

    Returns the last check. Raises UserError as `repair` does, for an unreadable file, and if `fix` is the file itself.
    """
    if fix is not None and fix.exists() and Path(annotations).exists() and os.path.samefile(annotations, fix):
        raise UserError(f"--fix {fix}: is the input file itself; choose another name")
    given = check_set("data", images, annotations)
    found = check([given], lambda: check_for_training(images, annotations))
    print_check(found)
    if fix is None:
        return found
    if given.read is None:
        raise UserError(f"--fix: the file cannot be repaired because it cannot be read: {given.error or found.refusal}")
    content = load_content(annotations)
    totals = len(content["images"]), len(content["annotations"])
    content = repair(given, content, corners)
    _write(content, fix, annotations)
    counts = [f"{len(content[key])} of {total} {key}" for key, total in zip(("images", "annotations"), totals)]
    print(f"\nrepaired: {' and '.join(counts)} are in {fix}")
    read = given.read
    by_path = {read.dataset.info(row).path: inspection for row, inspection in enumerate(read.inspections)}
    written = check_set("data", images, str(fix), lambda paths: [by_path[path] for path in paths])
    found = check([written], lambda: check_for_training(images, str(fix)))
    print_check(found)
    return found


def repair(found: SetCheck, content: dict[str, Any], corners: bool = False) -> dict[str, Any]:
    """Return the content of a checked annotation file with everything repaired that can be.

    - Values that reading repairs are written as they were read.
    - Boxes are clipped to their images. Boxes without area inside their image are removed, and so are boxes that are
      nearly identical to an earlier one of their class, unreadable annotations, and missing or damaged images.
    - Several images with the same file become one image with the objects of all.
    - Annotated sizes that differ from the file's are kept, because the boxes may refer to either of them.

    corners: the boxes in the file are x1, y1, x2, y2.

    Raises UserError if boxes seem to be corners but `corners` is not set, and if no image is left.
    """
    read = found.read
    assert read is not None
    xywh, images = _boxes(found, read.content.annotations, corners), _images(found, read)
    records = content["annotations"] if read.rows is None else [content["annotations"][row] for row in read.rows]
    names: dict[int | None, str] = dict(zip(read.content.category_ids, read.content.class_names, strict=True))
    ids = [parse_integer(record["id"])[0] for record in content["categories"]]
    return content | {
        "images": [record | images.entries[i] for i, record in enumerate(content["images"]) if i in images.entries],
        "categories": [
            record | {"id": k, "name": names[k]} for k, record in zip(ids, content["categories"], strict=True)
        ],
        "annotations": _annotations(read, records, xywh, images),
    }


def _write(content: dict[str, Any], path: Path, annotations: str) -> None:
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError:
        raise UserError(
            f"--fix: {annotations} has NaN or Infinity in a value that --fix does not repair; remove it"
        ) from None
    with output_file(path) as file:
        file.write(text.encode())


class _Images(NamedTuple):
    """The images that are kept."""

    entries: dict[int, dict[str, Any]]  # row of a kept image -> its id, file_name, width and height
    kept_rows: np.ndarray  # [I] the kept row with the same file, -1 if the image is removed


def _images(found: SetCheck, read: ReadSet) -> _Images:
    entries: dict[int, dict[str, Any]] = {}
    kept_rows = np.full(len(read.inspections), -1)
    first_rows: dict[str, int] = {}
    for row, (inspection, name) in enumerate(zip(read.inspections, read.files.names, strict=True)):
        if inspection.size is not None:
            kept_rows[row] = first_rows.setdefault(name, row)
        if kept_rows[row] == row:
            height, width = read.files.sizes[row].tolist()
            image_id = int(read.content.image_ids[row])
            entries[row] = {"id": image_id, "file_name": name, "width": width, "height": height}
    if not entries:
        raise UserError(f"--fix: no image of {found.annotations} can be read in {found.images}; correct the folder")
    return _Images(entries, kept_rows)


def _annotations(read: ReadSet, records: list[dict], xywh: np.ndarray, images: _Images) -> list[dict]:
    given = read.content.annotations
    rows = {image: row for row, image in enumerate(read.content.image_ids.tolist())}
    image = np.array([rows[i] for i in given.image_ids.tolist()], int)
    kept_rows = images.kept_rows[image]
    limits = read.files.sizes[image][:, ::-1]
    low, high = np.nan_to_num(xywh[:, :2]), np.nan_to_num(xywh[:, :2] + xywh[:, 2:])
    size_differs = read.files.size_differs[image][:, None]  # such images have no reliable border to clip to
    corners = np.concatenate([low, high], axis=1)
    corners = np.where(size_differs, corners, np.clip(corners, 0, np.concatenate([limits, limits], axis=1)))
    clipped = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    good = are_pixels(xywh) & (clipped[:, 2:] >= MIN_SIDE).all(1) & (kept_rows >= 0)
    kept = read.content._replace(annotations=given._replace(image_ids=np.where(good, kept_rows, -1), xywh=clipped))
    duplicates = {row for row, _, same_class in duplicate_boxes(kept) if same_class}
    chosen = [row for row in np.flatnonzero(good).tolist() if row not in duplicates]
    ids = _unique_ids([given.ids[row] for row in chosen])
    result = []
    for row, new_id in zip(chosen, ids, strict=True):
        values = {"id": new_id, "image_id": images.entries[int(kept_rows[row])]["id"]}
        values["category_id"] = int(given.category_ids[row])
        result.append(records[row] | values | _object(records[row], clipped[row], xywh[row], given.areas[row]))
        result[-1]["iscrowd"] = int(given.is_crowd[row])
    return result


def _object(record: dict, box: np.ndarray, before: np.ndarray, area: float) -> dict[str, Any]:
    """Return bbox and area of an annotation, unchanged from the file if they need no repair."""
    box_area = float(box[2] * box[3])
    has_area = np.isfinite(area) and area > 0
    same = np.allclose(box, before, rtol=0, atol=1e-9)
    bbox = record["bbox"] if same and _is_plain(record.get("bbox"), box) else box.tolist()
    if same and has_area and type(record.get("area")) in (int, float):
        return {"bbox": bbox, "area": record["area"]}
    return {"bbox": bbox, "area": min(float(area), box_area) if has_area else box_area}


def _is_plain(values: Any, box: np.ndarray) -> bool:
    """Return whether a bbox of the file consists of four numbers equal to those of the box."""
    return isinstance(values, list) and all(type(v) in (int, float) for v in values) and np.allclose(values, box)


def _boxes(found: SetCheck, annotations: Annotations, corners: bool) -> np.ndarray:
    """Return the boxes [A, 4] as xywh. Raises UserError as `repair` describes."""
    xywh = annotations.xywh
    converted = np.concatenate([xywh[:, :2], xywh[:, 2:] - xywh[:, :2]], axis=1)
    wrong = np.flatnonzero(~(converted[:, 2:] >= 0).all(1))
    if corners and len(wrong):
        row = int(wrong[0])
        where = f"annotation {annotations.ids[row]}: {xywh[row].tolist()}"
        raise UserError(f"--corners: {len(wrong)} of {len(xywh)} boxes have x2 < x1 or y2 < y1; the first: {where}")
    if not corners and not len(wrong) and "box_corners" in found.kinds():
        why = "could be corners x1, y1, x2, y2, and many exceed their image if read as x, y, width, height"
        raise UserError(f"--fix: all boxes of {found.annotations} {why}; add --corners if they are, or correct them")
    return converted if corners else xywh


def _unique_ids(ids: list[Any]) -> list[int]:
    """Return the ids, with new numbers for those that are not positive integers or are already used."""
    used, kept = {0}, []
    for value in ids:
        kept.append(value if type(value) is int and value > 0 and value not in used else 0)
        used.add(kept[-1])
    new_ids = itertools.count(max(used) + 1)
    return [value or next(new_ids) for value in kept]
