"""Reads a COCO annotation file that deviates from the format, and repairs deviations whose meaning is clear.

Images, categories and the annotations that deviate are checked value by value, so that each problem is reported with
its place: the file, the annotation, its image, the value. The other annotations are decoded by their types.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.data.annotations import lenient_values
from ppdet_lite.data.annotations.annotation_records import SeparatedAnnotations, pack
from ppdet_lite.data.annotations.coco_content import Annotations, CocoFile
from ppdet_lite.data.annotations.json_lists import read_lists
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at, raise_if_refused

LARGEST_SIDE = np.iinfo(np.int32).max
MISSING_BOX = (np.nan,) * 4


def read_with_repairs(path: str, images: Path | None = None) -> CocoFile:
    """Read an annotation file. Raises DatasetError if any problem is refused, UserError if the file is not COCO.

    images: the image folder, for the message on a file in another format.
    """
    lists, problems = read_lists(path, images)
    categories, category_problems = _categories(lists.categories)
    records = _Records(
        dict(enumerate(lists.images)), lambda record: Example(image=record.get("id"), file=_file(record))
    )
    image_ids, sizes = records.integers("id", "image_id", "image_number"), _sizes(records)
    records.add_repeated("image_id_repeated", image_ids, "id")
    for row, record in records.items.items():
        if not _file(record):
            records.add("file_name", row, "file_name")
    annotations, annotation_problems = _annotations(
        lists.annotations, _file_names(image_ids, lists.images), dict(zip(image_ids, sizes, strict=True))
    )
    problems += category_problems + records.problems() + annotation_problems
    raise_if_refused(path, problems)
    assert annotations is not None  # else there is a refusal
    return CocoFile(
        class_names=[name for _, name in categories],
        category_ids=[category for category, _ in categories],
        image_ids=np.array(image_ids, np.int64),
        sizes=np.array(sizes, np.int32),
        file_names=[record["file_name"] for record in lists.images],
        annotations=annotations,
        problems=problems,
    )


def read_categories(path: str) -> tuple[list[str], list[int]]:
    """Return class names and category ids of a file, in the order of ids. Raises UserError as `read_coco`."""
    lists, _ = read_lists(path)
    categories, problems = _categories(lists.categories)
    raise_if_refused(path, problems)
    return [name for _, name in categories], [category for category, _ in categories]


class _Records:
    """Records of a list by row, with their problems.

    total: the length of the list, if `items` are only a part of it. describe: returns an Example with a record's ids.
    """

    def __init__(
        self, items: Mapping[int, dict], describe: Callable[[dict], Example], total: int | None = None
    ) -> None:
        self.items, self._describe, self._total = items, describe, len(items) if total is None else total
        self._rows: dict[str, dict[int, str]] = {}  # kind of problem -> row -> key of the faulty value

    def add(self, kind: str, row: int, key: str) -> None:
        """Add a problem of the value that a row has under `key`; each row counts once per kind."""
        self._rows.setdefault(kind, {}).setdefault(row, key)

    def add_repeated(self, kind: str, values: Sequence[Any], key: str) -> None:
        """Add a problem for each row whose value an earlier row has."""
        seen: set[Any] = set()
        for row, value in enumerate(values):
            if value is not None and value in seen:
                self.add(kind, row, key)
            seen.add(value)

    def integers(self, key: str, refusal: str, note: str) -> list[int | None]:
        """Return the integers under a key, with None for invalid ones; refusal, note: the problems to add."""
        return [self._integer(row, record.get(key), key, refusal, note) for row, record in self.items.items()]

    def _integer(self, row: int, value: Any, key: str, refusal: str, note: str) -> int | None:
        integer, usual = lenient_values.parse_integer(value)
        if integer is None:
            self.add(refusal, row, key)
        elif not usual:
            self.add(note, row, key)
        return integer

    def problems(self) -> list[Problem]:
        """Return all problems added, one for each kind."""

        def example(keys: Mapping[int, str], row: int) -> Example:
            record, key = self.items[row], keys[row]
            value = {key: record[key]} if key in record else f"no {key}"
            return self._describe(record)._replace(value=value, number=row + 1 if record.get("id") is None else None)

        return [
            problems_at(kind, sorted(keys), self._total, partial(example, keys))[0] for kind, keys in self._rows.items()
        ]


def _categories(records: Sequence[dict]) -> tuple[list[tuple[int, str]], list[Problem]]:
    """Return (id, name) of the categories in the order of ids, and their problems."""
    categories = _Records(dict(enumerate(records)), lambda record: Example(category=record.get("id")))
    ids = categories.integers("id", "category_id", "category_number")
    names = []
    for row, record in enumerate(records):
        name = record.get("name")
        if type(name) is int or (isinstance(name, float) and math.isfinite(name)):
            categories.add("name_number", row, "name")
            name = str(name)
        elif not isinstance(name, str) or not lenient_values.is_name(name):
            categories.add("name", row, "name")
            name = None
        elif name != name.strip():
            categories.add("name_spaces", row, "name")
            name = name.strip()
        names.append(name)
    categories.add_repeated("category_id_repeated", ids, "id")
    categories.add_repeated("name_repeated", names, "name")
    valid = [(k, name) for k, name in zip(ids, names, strict=True) if k is not None and name is not None]
    return sorted(valid), categories.problems()


def _sizes(images: _Records) -> list[list[int]]:
    """Return [height, width] of each image, with 0 where the record does not give it."""
    sizes = []
    for row, record in images.items.items():
        sizes.append([0, 0])
        for i, key in enumerate(("height", "width")):
            side, usual = (0, True) if record.get(key) is None else lenient_values.parse_integer(record[key])
            if side is None or not 0 <= side <= LARGEST_SIDE:
                images.add("size", row, key)
            else:
                sizes[row][i] = side
                if not usual:
                    images.add("image_number", row, key)
    return sizes


def _annotations(
    items: SeparatedAnnotations, file_names: Mapping[int | None, str], sizes: Mapping[int | None, Sequence[int]]
) -> tuple[Annotations | None, list[Problem]]:
    """Return the annotations, or None if some are refused, and their problems; file_names, sizes: by image id."""

    def describe(record: dict) -> Example:
        image_id = lenient_values.parse_integer(record.get("image_id"))[0]
        return Example(record.get("id"), record.get("image_id"), file=file_names.get(image_id))

    records, rows = _Records(items.others, describe, len(items.records)), list(items.others)
    ids = [_id(records, row) for row in rows]
    image_ids = records.integers("image_id", "image", "number")
    category_ids = records.integers("category_id", "category", "number")
    xywh = [_box(records, row, sizes.get(image, (0, 0))) for row, image in zip(rows, image_ids, strict=True)]
    areas = [_area(records, row) for row in rows]
    is_crowd = [_crowd(records, row) for row in rows]
    problems = records.problems()
    if any(problem.level == "refusal" for problem in problems):
        return None, problems
    annotations = pack(items.records)
    for row, value in zip(rows, ids, strict=True):
        annotations.ids[row] = value
    annotations.image_ids[rows], annotations.category_ids[rows] = image_ids, category_ids
    annotations.xywh[rows] = np.array(xywh, np.float64).reshape(-1, 4)
    annotations.areas[rows] = areas
    annotations.is_crowd[rows] = [flag is True for flag in is_crowd]
    annotations.has_crowd_flag[rows] = [flag is not None for flag in is_crowd]
    others = items.others.values()
    annotations.has_ignore_flag[rows] = [lenient_values.is_flag_set(record.get("ignore")) for record in others]
    annotations.is_rotated[rows] = [lenient_values.is_rotated(record.get("attributes")) for record in others]
    return annotations, problems


def _id(records: _Records, row: int) -> Any:
    """Return the id of an annotation, as an integer if it is one; it is only used in messages."""
    value = records.items[row].get("id")
    integer, usual = lenient_values.parse_integer(value)
    if not usual:
        records.add("number", row, "id")
    return value if integer is None else integer


def _box(records: _Records, row: int, size: Sequence[int]) -> Sequence[float]:
    """Return x, y, width, height of an annotation, from its segmentation without a bbox; size: its image's (h, w)."""
    record = records.items[row]
    if record.get("bbox") in (None, []):
        segmentation = record.get("segmentation")
        box = lenient_values.segmentation_box(segmentation, size)
        if box is None:
            records.add("bbox_missing", row, "segmentation" if segmentation else "bbox")
            return MISSING_BOX
        records.add("bbox_from_mask", row, "bbox")
        return box
    values = record["bbox"] if isinstance(record["bbox"], list) else []
    numbers = [lenient_values.parse_number(value) for value in values]
    box = [parsed for parsed, _ in numbers if parsed is not None]
    if len(numbers) != 4 or len(box) != 4:
        records.add("bbox", row, "bbox")
        return MISSING_BOX
    if not all(usual for _, usual in numbers):
        records.add("bbox_text", row, "bbox")
    return box


def _area(records: _Records, row: int) -> float:
    """Return the area of an annotation, NaN if it is missing or invalid."""
    area, usual = lenient_values.parse_number(records.items[row].get("area"))
    if area is None:
        records.add("area", row, "area")
        return np.nan
    if not usual:
        records.add("bbox_text", row, "area")
    return area


def _crowd(records: _Records, row: int) -> bool | None:
    """Return whether an annotation is a crowd region, None if iscrowd is missing or invalid."""
    value = records.items[row].get("iscrowd")
    flag, usual = lenient_values.parse_crowd_flag(value)
    if flag is None and value is not None and value == value:
        records.add("crowd", row, "iscrowd")
    elif not usual:
        records.add("crowd_text", row, "iscrowd")
    return flag


def _file_names(image_ids: Sequence[int | None], records: Sequence[dict]) -> dict[int | None, str]:
    """Return the file names of the images by id, without invalid ones."""
    return {key: name for key, record in zip(image_ids, records, strict=True) if (name := _file(record))}


def _file(record: dict) -> str | None:
    """Return the file_name of an image, None if it is missing or invalid."""
    name = record.get("file_name")
    return name if isinstance(name, str) and lenient_values.is_file_name(name) else None
