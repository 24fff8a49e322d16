"""Packs the annotations of a file by image: matches them with images and classes, repairs them, reports problems."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.problems import Example, Problem, format_value, problems_at, raise_if_refused
from ppdet_lite.data.images.sizes import ROUNDING

MAX_COORDINATE = 1e12  # pixels; larger values, infinity and NaN cannot be coordinates in an image
MIN_SIDE = 1e-3  # pixels; a box with a shorter side inside its image is dropped
MAX_OUTSIDE = 0.05  # above this fraction of clipped and dropped boxes, a warning says that they may be x1, y1, x2, y2

MAX_FRACTION = 1.05  # a box without a larger value is a fraction of its image: in pixels it would be a dot in a corner
REFUSED_FRACTIONS = 0.9  # share of boxes that are fractions from which a file is refused
MIN_BOXES = 20  # in fewer boxes, it may be chance that all are in the upper left quarter of their images


class PackedObjects(NamedTuple):
    """The A objects of I images and K classes, sorted by image."""

    class_names: list[str]
    category_ids: np.ndarray  # [K] int64
    images: np.ndarray  # [I] rows of the file's images that are kept
    offsets: np.ndarray  # [I + 1]; the objects of image i are rows offsets[i] to offsets[i + 1]
    classes: np.ndarray  # [A] int32, 0..K-1
    xywh: np.ndarray  # [A, 4] float64, unclipped
    areas: np.ndarray  # [A] float64
    is_crowd: np.ndarray  # [A] bool
    problems: list[Problem]


class _Indexed:
    """The annotations of a file, with the rows of their images and categories."""

    def __init__(self, content: CocoFile, file: str, sizes: np.ndarray, file_names: Sequence[str]) -> None:
        self.annotations, self._names, self._sizes = content.annotations, file_names, sizes
        self.image, self._unknown_image = _index(self.annotations.image_ids, content.image_ids)
        self.category, unknown = _index(self.annotations.category_ids, np.array(content.category_ids, np.int64))
        category_ids = self.annotations.category_ids
        raise_if_refused(
            file,
            self.problems_at("image_unknown", self._unknown_image)
            + self.problems_at("category_unknown", unknown, lambda row: {"category_id": int(category_ids[row])}),
        )

    def problems_at(self, kind: str, rows: Any, value: Callable[[int], Any] = lambda row: None) -> list[Problem]:
        """Return the problem of a kind that the annotations at `rows` have, in a list that is empty without rows."""
        records = self.annotations

        def example(row: int) -> Example:
            name = None if self._unknown_image[row] else self._names[self.image[row]]
            number = row + 1 if records.ids[row] is None else None
            return Example(records.ids[row], int(records.image_ids[row]), None, name, value(row), number)

        return problems_at(kind, rows, len(records.ids), example)

    def box(self, row: int) -> dict[str, Any]:
        """Return the values of a box and its image that a message shows."""
        height, width = self._sizes[self.image[row]].tolist()
        return {"bbox": self.annotations.xywh[row].tolist(), "width": width, "height": height}


def pack_objects(
    content: CocoFile,
    file: str,
    sizes: np.ndarray,
    file_names: Sequence[str],
    class_names: Sequence[str] | None,
    keep_empty: bool,
    drop_empty_classes: bool,
) -> PackedObjects:
    """Pack the objects of a file whose images have the given sizes, [images, 2] (h, w).

    The last three arguments are those of `CocoDataset`. Raises UserError with the file's path if objects have unknown
    images or categories, if the classes do not match class_names, or if nothing is left.
    """
    records = _Indexed(content, file, sizes, file_names)
    image, is_crowd = records.image, records.annotations.is_crowd
    good, problems = _usable_boxes(records, sizes)
    raise_if_refused(file, problems)
    boxes = np.bincount(records.category[good & ~is_crowd], minlength=len(content.class_names))
    used = np.isin(content.category_ids, records.annotations.category_ids)
    chosen, class_problems = choose_classes(
        content.class_names, content.category_ids, boxes, used, file, class_names, drop_empty_classes
    )
    class_of = np.full(len(content.class_names), -1, np.int32)
    class_of[chosen] = np.arange(len(chosen))
    classes = class_of[records.category]
    problems += class_problems + records.problems_at("class_left_out", good & (classes < 0))
    good &= classes >= 0
    areas, area_problems = _areas(records, good)
    problems += area_problems

    objects = np.bincount(image[good & ~is_crowd], minlength=len(sizes))
    kept = objects > 0 if not keep_empty else np.ones(len(sizes), bool)
    problems += problems_at(
        "empty_kept" if keep_empty else "empty_left_out",
        objects == 0,
        len(sizes),
        lambda row: Example(image=int(content.image_ids[row]), file=file_names[row]),
    )
    if not kept.any():
        raise UserError(f"{file}: no image has an object, and keep_empty is false", key="keep_empty")
    order = np.argsort(image, kind="stable")
    order = order[(good & kept[image])[order]]
    per_image = np.bincount(image[order], minlength=len(sizes))[kept]
    classes, xywh, areas, is_crowd = (array[order] for array in (classes, records.annotations.xywh, areas, is_crowd))
    return PackedObjects(
        class_names=[content.class_names[k] for k in chosen],
        category_ids=np.array(content.category_ids, np.int64)[chosen],
        images=np.flatnonzero(kept),
        offsets=np.concatenate([[0], np.cumsum(per_image)]),
        classes=classes,
        xywh=xywh,
        areas=areas,
        is_crowd=is_crowd,
        problems=problems,
    )


def box_extents(xywh: np.ndarray, image_ids: np.ndarray, known_ids: np.ndarray) -> np.ndarray:
    """Return the largest y and x of the boxes of each known image, [images, 2]; non-finite boxes count as 0."""
    xywh = np.where(are_pixels(xywh)[:, None], xywh, 0)
    ends = (xywh[:, :2] + xywh[:, 2:])[:, ::-1]
    image, unknown = _index(image_ids, known_ids)
    result = np.zeros((len(known_ids), 2))
    np.maximum.at(result, image[~unknown], ends[~unknown])
    return result


def are_pixels(xywh: np.ndarray) -> np.ndarray:
    """Return which boxes [A, 4] have four values that can be pixels, bool [A]."""
    return (np.abs(xywh) <= MAX_COORDINATE).all(1)


def clipped_corners(xywh: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Convert boxes [G, 4] xywh to float32 xyxy, clipped to images of size (h, w), [2] or [G, 2]."""
    limit = np.concatenate([size[..., ::-1], size[..., ::-1]], axis=-1)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return np.clip(corners, 0, limit).astype(np.float32)


def _usable_boxes(records: _Indexed, sizes: np.ndarray) -> tuple[np.ndarray, list[Problem]]:
    """Return which boxes can be used, bool [A], and the problems of boxes, crowd flags and ids."""
    annotations, size = records.annotations, sizes[records.image]
    xywh = annotations.xywh
    pixels = are_pixels(xywh)
    finite = np.where(pixels[:, None], xywh, 0)
    corners = clipped_corners(finite, size)
    good = pixels & (corners[:, 2:] - corners[:, :2] >= MIN_SIDE).all(1)
    beyond = (finite[:, :2] < -ROUNDING) | (finite[:, :2] + finite[:, 2:] > size[:, ::-1] + ROUNDING)
    clipped = good & beyond.any(1)
    problems = records.problems_at("box_dropped", ~good, records.box) + records.problems_at(
        "box_clipped", clipped, records.box
    )
    if np.sum(~good | clipped) > MAX_OUTSIDE * len(good):
        problems += records.problems_at("box_corners", ~good | clipped, records.box)
    problems += _scale_problems(records, good, corners, size)
    problems += records.problems_at("box_ignored", annotations.has_ignore_flag & ~annotations.is_crowd)
    problems += records.problems_at("box_rotated", annotations.is_rotated)
    problems += records.problems_at("crowd_missing", ~annotations.has_crowd_flag)
    problems += records.problems_at("annotation_id", _unusable_ids(annotations.ids))
    return good, problems


def find_fractions(xywh: np.ndarray, size: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return which boxes [A, 4] are fractions of their image's size (h, w) [A, 2], bool [A], and whether most are."""
    is_box = (xywh[:, 2:] > 0).all(1) & are_pixels(xywh)
    fractions = is_box & (np.abs(xywh) <= MAX_FRACTION).all(1) & (size > 2 * MAX_FRACTION).all(1)
    return fractions, bool(fractions.any() and fractions.sum() >= REFUSED_FRACTIONS * is_box.sum())


def _scale_problems(records: _Indexed, good: np.ndarray, corners: np.ndarray, size: np.ndarray) -> list[Problem]:
    """Return the problem of boxes that seem to be in another unit than pixels; corners: [A, 4], clipped."""
    fractions, most = find_fractions(records.annotations.xywh, size)
    if fractions.any():
        return records.problems_at("box_fractions" if most else "box_fraction", fractions, records.box)
    if good.sum() < MIN_BOXES or (corners[good, 2:] > size[good, ::-1] / 2).any():
        return []
    return records.problems_at("box_scale", good, records.box)


def _areas(records: _Indexed, good: np.ndarray) -> tuple[np.ndarray, list[Problem]]:
    """Return the areas [A], w * h where the file has none above 0, and the problems of those of good boxes."""
    areas, xywh = records.annotations.areas, np.where(good[:, None], records.annotations.xywh, 0)
    missing = ~(np.isfinite(areas) & (areas > 0))
    problems = records.problems_at(
        "area_missing", missing & good, lambda row: None if np.isnan(areas[row]) else {"area": float(areas[row])}
    )
    return np.where(missing, xywh[:, 2] * xywh[:, 3], areas), problems


def choose_classes(
    names: Sequence[str],
    category_ids: Sequence[int],
    boxes: np.ndarray,
    used: np.ndarray,
    file: str,
    class_names: Sequence[str] | None,
    drop_empty: bool,
) -> tuple[list[int], list[Problem]]:
    """Return the rows of the categories that become the classes, in the order of the classes, and their problems.

    boxes: [categories], the number of usable boxes of each that are not crowd regions. used: [categories], whether any
    annotation is of it. class_names, drop_empty: see `CocoDataset`.
    """

    def at(kind: str, rows: Sequence[int]) -> list[Problem]:
        return problems_at(kind, rows, len(names), lambda k: Example(category=category_ids[k], value=names[k]))

    if class_names is None:
        if not drop_empty:
            return list(range(len(names))), []
        if not boxes.any():
            raise UserError(f"{file}: no category has a box, and drop_empty_classes is true", key="drop_empty_classes")
        return np.flatnonzero(boxes).tolist(), at("class_dropped", np.flatnonzero(boxes == 0).tolist())
    extra = [k for k, name in enumerate(names) if name not in class_names]
    missing = set(class_names) - set(names)
    if missing or (any(used[k] for k in extra) and not drop_empty):
        raise UserError(
            f"the classes of {file} are not those of the model or training set; only in the file: "
            f"{_join_names(names[k] for k in extra)}; missing in the file: {_join_names(missing)}"
            + ("" if missing else "; drop_empty_classes: true leaves out those only in the file"),
            key="annotations",
        )
    return [names.index(name) for name in class_names], at("class_unused", [k for k in extra if not used[k]])


def _unusable_ids(ids: Sequence[Any]) -> list[int]:
    """Return the rows whose id is not an integer, is 0, or repeats an earlier one."""
    seen: set[int] = {0}
    rows = []
    for row, value in enumerate(ids):
        if type(value) is not int or value in seen:
            rows.append(row)
        else:
            seen.add(value)
    return rows


def _index(values: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of each value in an array of unique ids, and which values are not in it."""
    order = np.argsort(ids)
    index = order[np.searchsorted(ids[order], values).clip(max=len(ids) - 1)]
    return index, ids[index] != values


def _join_names(names: Iterable[str]) -> str:
    return ", ".join(format_value(name) for name in sorted(names)) or "none"
