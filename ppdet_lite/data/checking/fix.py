"""A COCO file written again with what can be repaired repaired, all else in it as it was."""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.lenient_values import whole
from ppdet_lite.data.annotations.objects import LARGEST, MIN_SIDE
from ppdet_lite.data.checking.boxes import same_boxes
from ppdet_lite.data.checking.check import Check, SetCheck, begin_training, check, check_set, tell
from ppdet_lite.data.checking.readable_part import load_content
from ppdet_lite.storage.files import output_file


def check_file(annotations: str, images: str, fix: Path | None = None, corners: bool = False) -> Check:
    """Look at one annotation file as a training set, and print what is found; repair it into `fix`, and look again.

    Returns what is found in the repaired file, if one is asked for. Raises UserError as `repaired` does, and if `fix`
    is the file itself.
    """
    if fix is not None and fix.exists() and Path(annotations).exists() and os.path.samefile(annotations, fix):
        raise UserError(f"--fix {fix}: is the input itself; choose another name")
    given = check_set("data", images, annotations)
    found = check([given], lambda: begin_training(images, annotations))
    tell(found)
    if fix is None:
        return found
    if given.dataset is None:
        raise UserError(f"--fix: nothing can be repaired of what is not read: {given.error or found.refusal}")
    content = load_content(annotations)
    totals = len(content["images"]), len(content["annotations"])
    content = repaired(given, content, corners)
    _write(content, fix, annotations)
    left = [f"{len(content[key])} of {total} {key}" for key, total in zip(("images", "annotations"), totals)]
    print(f"\nrepaired: {' and '.join(left)} are in {fix}")
    seen = {given.dataset.info(row).path: look for row, look in enumerate(given.looks)}
    again = check_set("data", images, str(fix), lambda paths: [seen[path] for path in paths])
    found = check([again], lambda: begin_training(images, str(fix)))
    tell(found)
    return found


def repaired(found: SetCheck, content: dict[str, Any], corners: bool = False) -> dict[str, Any]:
    """The content of a checked annotation file with what can be repaired repaired, all else as it was.

    What reading mends is as it was read. Boxes are clipped to their images; those without area there, and those that
    are nearly the same as one before them of their class, are left out; and so are annotations that cannot be read,
    and images that are missing or damaged. A file that is listed twice becomes one image with the objects of both.
    Sizes that are not the file's stay: nobody knows which of the two the boxes are of.
    corners: the boxes are x1, y1, x2, y2.

    Raises UserError for boxes that may be corners, if `corners` does not say it, and where no image is left.
    """
    xywh, images = _boxes(found, corners), _images(found)
    records = content["annotations"] if found.kept is None else [content["annotations"][row] for row in found.kept]
    names = dict(zip(found.content.category_ids, found.content.class_names, strict=True))
    ids = [whole(record["id"])[0] for record in content["categories"]]
    return content | {
        "images": [record | images.values[row] for row, record in enumerate(content["images"]) if row in images.values],
        "categories": [
            record | {"id": k, "name": names[k]} for k, record in zip(ids, content["categories"], strict=True)
        ],
        "annotations": _annotations(found, records, xywh, images),
    }


def _write(content: dict[str, Any], path: Path, annotations: str) -> None:
    try:
        text = json.dumps(content, allow_nan=False)
    except ValueError:
        raise UserError(f"--fix: {annotations} has NaN or Infinity where nothing is repaired; take it out") from None
    with output_file(path) as file:
        file.write(text.encode())


class _Images(NamedTuple):
    """Which images stay."""

    values: dict[int, dict[str, Any]]  # row -> what is written of it
    stays: np.ndarray  # [I] the row that an image becomes, -1 if it is left out


def _images(found: SetCheck) -> _Images:
    values: dict[int, dict[str, Any]] = {}
    stays = np.full(len(found.looks), -1)
    rows: dict[str, int] = {}
    for row, (look, name) in enumerate(zip(found.looks, found.files.names, strict=True)):
        if look.size is not None:
            stays[row] = rows.setdefault(name, row)
        if stays[row] == row:
            height, width = found.files.sizes[row].tolist()
            image_id = int(found.content.image_ids[row])
            values[row] = {"id": image_id, "file_name": name, "width": width, "height": height}
    if not values:
        raise UserError(f"--fix: no image of {found.annotations} can be read in {found.images}; correct the folder")
    return _Images(values, stays)


def _annotations(found: SetCheck, records: list[dict], xywh: np.ndarray, images: _Images) -> list[dict]:
    given = found.content.annotations
    rows = {image: row for row, image in enumerate(found.content.image_ids.tolist())}
    image = np.array([rows[i] for i in given.image_ids.tolist()], int)
    stays = images.stays[image]
    limits = found.files.sizes[image][:, ::-1]
    low, high = np.nan_to_num(xywh[:, :2]), np.nan_to_num(xywh[:, :2] + xywh[:, 2:])
    doubtful = found.files.doubtful[image][:, None]
    inside = np.concatenate([low, high], axis=1)
    inside = np.where(doubtful, inside, np.clip(inside, 0, np.concatenate([limits, limits], axis=1)))
    clipped = np.concatenate([inside[:, :2], inside[:, 2:] - inside[:, :2]], axis=1)
    good = (np.abs(xywh) <= LARGEST).all(1) & (clipped[:, 2:] >= MIN_SIDE).all(1) & (stays >= 0)
    kept = found.content._replace(annotations=given._replace(image_ids=np.where(good, stays, -1), xywh=clipped))
    twice = {row for row, _, one_class in same_boxes(kept) if one_class}
    chosen = [row for row in np.flatnonzero(good).tolist() if row not in twice]
    ids = _distinct([given.ids[row] for row in chosen])
    result = []
    for row, new_id in zip(chosen, ids, strict=True):
        values = {"id": new_id, "image_id": images.values[int(stays[row])]["id"]}
        values["category_id"] = int(given.category_ids[row])
        result.append(records[row] | values | _object(records[row], clipped[row], xywh[row], given.areas[row]))
        result[-1]["iscrowd"] = int(given.is_crowd[row])
    return result


def _object(record: dict, box: np.ndarray, before: np.ndarray, area: float) -> dict[str, Any]:
    """bbox and area of an annotation, as they stand in the file where nothing is wrong with them."""
    full = float(box[2] * box[3])
    known = np.isfinite(area) and area > 0
    same = np.allclose(box, before, rtol=0, atol=1e-9)
    bbox = record["bbox"] if same and _is_plain(record.get("bbox"), box) else box.tolist()
    if same and known and type(record.get("area")) in (int, float):
        return {"bbox": bbox, "area": record["area"]}
    return {"bbox": bbox, "area": min(float(area), full) if known else full}


def _is_plain(values: Any, box: np.ndarray) -> bool:
    """Whether a bbox of the file is four numbers, those of the box."""
    return isinstance(values, list) and all(type(v) in (int, float) for v in values) and np.allclose(values, box)


def _boxes(found: SetCheck, corners: bool) -> np.ndarray:
    """The boxes [A, 4] as xywh."""
    xywh = found.content.annotations.xywh
    turned = np.concatenate([xywh[:, :2], xywh[:, 2:] - xywh[:, :2]], axis=1)
    wrong = np.flatnonzero(~(turned[:, 2:] >= 0).all(1))
    if corners and len(wrong):
        row = int(wrong[0])
        where = f"annotation {found.content.annotations.ids[row]}: {xywh[row].tolist()}"
        raise UserError(f"--corners: {len(wrong)} of {len(xywh)} boxes are no x1, y1, x2, y2; the first: {where}")
    if not corners and not len(wrong) and "box_corners" in found.kinds():
        doubt = "could be corners x1, y1, x2, y2, and many reach beyond their image as x, y, width, height"
        raise UserError(f"--fix: all boxes of {found.annotations} {doubt}; add --corners if they are, or correct them")
    return turned if corners else xywh


def _distinct(ids: list[Any]) -> list[int]:
    """The ids, with new numbers for those that are no whole number above 0, or another's."""
    seen: set[int] = set()
    usable = []
    for value in ids:
        usable.append(type(value) is int and value > 0 and value not in seen)
        if usable[-1]:
            seen.add(value)
    following = max(seen, default=0)
    result = []
    for value, use in zip(ids, usable, strict=True):
        following += not use
        result.append(value if use else following)
    return result
