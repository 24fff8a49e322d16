"""The objects of an annotation file packed image by image: matched with images and classes, mended, counted."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at, refuse, shown
from ppdet_lite.data.images.sizes import ROUNDING

LARGEST = 1e12  # pixels; numbers beyond, like infinity and NaN, are no place in an image
MIN_SIDE = 1e-3  # pixels; a box that is narrower or lower inside its image has nothing to learn from
SUSPECT = 0.05  # share of clipped and dropped boxes above which they may be something else than x, y, width, height


class Objects(NamedTuple):
    """The objects, A of them, of I images and K classes."""

    class_names: list[str]
    category_ids: np.ndarray  # [K] int64
    images: np.ndarray  # [I] which of the file's images are kept
    offsets: np.ndarray  # [I + 1], where the objects of an image begin
    classes: np.ndarray  # [A] int32, 0..K-1
    xywh: np.ndarray  # [A, 4] float64, unclipped
    areas: np.ndarray  # [A] float64
    is_crowd: np.ndarray  # [A] bool
    problems: list[Problem]


class _Records:
    """The annotations of a file beside the places of their images and categories."""

    def __init__(self, content: CocoFile, file: str, sizes: np.ndarray, file_names: Sequence[str]) -> None:
        self.annotations, self._names, self._sizes = content.annotations, file_names, sizes
        self.image, self._strange = _index(self.annotations.image_ids, content.image_ids)
        self.category, unknown = _index(self.annotations.category_ids, np.array(content.category_ids, np.int64))
        category_ids = self.annotations.category_ids
        refuse(
            file,
            self.at("image_unknown", self._strange)
            + self.at("category_unknown", unknown, lambda row: {"category_id": int(category_ids[row])}),
        )

    def at(self, kind: str, rows: Any, value: Callable[[int], Any] = lambda row: None) -> list[Problem]:
        """The problem of some rows."""
        records = self.annotations

        def example(row: int) -> Example:
            name = None if self._strange[row] else self._names[self.image[row]]
            number = row + 1 if records.ids[row] is None else None
            return Example(records.ids[row], int(records.image_ids[row]), None, name, value(row), number)

        return problems_at(kind, rows, len(records.ids), example)

    def box(self, row: int) -> dict[str, Any]:
        """What a message shows of a box and its image."""
        height, width = self._sizes[self.image[row]].tolist()
        return {"bbox": self.annotations.xywh[row].tolist(), "width": width, "height": height}


def pack(
    content: CocoFile,
    file: str,
    sizes: np.ndarray,
    file_names: Sequence[str],
    class_names: Sequence[str] | None,
    keep_empty: bool,
    drop_empty_classes: bool,
) -> Objects:
    """Pack the objects of a file whose images have these sizes, [images, 2] (h, w); options as `CocoDataset` has them.

    Raises UserError, naming the file, where objects, images and classes do not belong together.
    """
    records = _Records(content, file, sizes, file_names)
    image, is_crowd = records.image, records.annotations.is_crowd
    good, problems = _sound(records, sizes)
    names_and_ids = content.class_names, content.category_ids
    boxes = np.bincount(records.category[good & ~is_crowd], minlength=len(content.class_names))
    used = np.isin(content.category_ids, records.annotations.category_ids)
    chosen, told = choose_classes(*names_and_ids, boxes, used, file, class_names, drop_empty_classes)
    class_of = np.full(len(content.class_names), -1, np.int32)
    class_of[chosen] = np.arange(len(chosen))
    classes = class_of[records.category]
    problems += told + records.at("class_left_out", good & (classes < 0))
    good &= classes >= 0
    areas, mended = _areas(records, good)
    problems += mended

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
    return Objects(
        [content.class_names[place] for place in chosen],
        np.array(content.category_ids, np.int64)[chosen],
        np.flatnonzero(kept),
        np.concatenate([[0], np.cumsum(per_image)]),
        *(array[order] for array in (classes, records.annotations.xywh, areas, is_crowd)),
        problems,
    )


def extents(xywh: np.ndarray, image_ids: np.ndarray, known_ids: np.ndarray) -> np.ndarray:
    """How far the boxes of each known image reach, [images, 2] (y, x); 0 for those that are not finite."""
    xywh = np.where(_are_pixels(xywh), xywh, 0)
    reach = (xywh[:, :2] + xywh[:, 2:])[:, ::-1]
    image, strange = _index(image_ids, known_ids)
    result = np.zeros((len(known_ids), 2))
    np.maximum.at(result, image[~strange], reach[~strange])
    return result


def clipped_corners(xywh: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Turn [G, 4] xywh into float32 xyxy inside images of size (h, w), [2] or [G, 2]."""
    limit = np.concatenate([size[..., ::-1], size[..., ::-1]], axis=-1)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return np.clip(corners, 0, limit).astype(np.float32)


def _sound(records: _Records, sizes: np.ndarray) -> tuple[np.ndarray, list[Problem]]:
    """Which boxes can be used, bool [A]; and what is to be told of boxes, crowd flags and ids."""
    annotations, size = records.annotations, sizes[records.image]
    xywh = annotations.xywh
    finite = np.where(_are_pixels(xywh), xywh, 0)
    corners = clipped_corners(finite, size)
    good = _are_pixels(xywh)[:, 0] & (corners[:, 2:] - corners[:, :2] >= MIN_SIDE).all(1)
    beyond = (finite[:, :2] < -ROUNDING) | (finite[:, :2] + finite[:, 2:] > size[:, ::-1] + ROUNDING)
    clipped = good & beyond.any(1)
    problems = records.at("box_dropped", ~good, records.box) + records.at("box_clipped", clipped, records.box)
    if np.sum(~good | clipped) > SUSPECT * len(good):
        problems += records.at("box_corners", ~good | clipped, records.box)
    problems += records.at("crowd_missing", ~annotations.says_crowd)
    problems += records.at("annotation_id", _unusable(annotations.ids))
    return good, problems


def _areas(records: _Records, good: np.ndarray) -> tuple[np.ndarray, list[Problem]]:
    """The areas [A], w * h where the file has none above 0; told of good boxes."""
    areas, xywh = records.annotations.areas, np.where(good[:, None], records.annotations.xywh, 0)
    lacking = ~(np.isfinite(areas) & (areas > 0))
    problems = records.at(
        "area_missing", lacking & good, lambda row: None if np.isnan(areas[row]) else {"area": float(areas[row])}
    )
    return np.where(lacking, xywh[:, 2] * xywh[:, 3], areas), problems


def _are_pixels(xywh: np.ndarray) -> np.ndarray:
    """Which boxes are of usable numbers, bool [A, 1]."""
    return (np.abs(xywh) <= LARGEST).all(1, keepdims=True)


def choose_classes(
    names: Sequence[str],
    category_ids: Sequence[int],
    boxes: np.ndarray,
    used: np.ndarray,
    file: str,
    class_names: Sequence[str] | None,
    drop_empty: bool,
) -> tuple[list[int], list[Problem]]:
    """The places of a file's categories that are the classes, in their order; options as `CocoDataset` has them.

    boxes, used: how many boxes to learn from each category has, and whether any annotation at all is of it.
    """

    def at(kind: str, places: Sequence[int]) -> list[Problem]:
        return problems_at(
            kind, places, len(names), lambda place: Example(category=category_ids[place], value=names[place])
        )

    if class_names is None:
        if not drop_empty:
            return list(range(len(names))), []
        if not boxes.any():
            raise UserError(f"{file}: no category has a box, and drop_empty_classes is true", key="drop_empty_classes")
        return np.flatnonzero(boxes).tolist(), at("class_dropped", np.flatnonzero(boxes == 0).tolist())
    extra = [place for place, name in enumerate(names) if name not in class_names]
    filled = [place for place in extra if used[place]]
    missing = set(class_names) - set(names)
    if missing or (filled and not drop_empty):
        raise UserError(
            f"the classes of {file} are not those of the model or training set; only in the file: "
            f"{_listed(names[place] for place in extra)}; missing in the file: {_listed(missing)}"
            + ("" if missing else "; drop_empty_classes: true leaves the former out"),
            key="annotations",
        )
    return [names.index(name) for name in class_names], at("class_unused", [p for p in extra if p not in filled])


def _unusable(ids: Sequence[Any]) -> list[int]:
    """The rows whose id is no whole number, 0, or that of a row before."""
    seen: set[int] = {0}
    rows = []
    for row, value in enumerate(ids):
        if type(value) is not int or value in seen:
            rows.append(row)
        else:
            seen.add(value)
    return rows


def _index(values: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The position of each value among unique ids, and which values are not among them."""
    order = np.argsort(ids)
    place = order[np.searchsorted(ids[order], values).clip(max=len(ids) - 1)]
    return place, ids[place] != values


def _listed(names: Collection[str]) -> str:
    return ", ".join(shown(name) for name in sorted(names)) or "none"
