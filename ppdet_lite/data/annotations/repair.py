"""The careful way to read a COCO annotation file: what tools write otherwise is mended, what cannot be is told.

Every value is looked at, so that whatever is wrong has its place: the file, the annotation, its image, the value.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ppdet_lite.data.annotations.coco_content import Annotations, CocoFile
from ppdet_lite.data.annotations.json_lists import read_lists
from ppdet_lite.data.annotations.lenient_values import crowd, is_file_name, is_name, number, segmentation_box, whole
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at, refuse

LARGEST_SIDE = np.iinfo(np.int32).max
NOTHING = (np.nan,) * 4


def read_with_repairs(path: str) -> CocoFile:
    """Read an annotation file value by value. Raises Refused with all that is wrong, UserError if it is no COCO."""
    lists, problems = read_lists(path)
    categories, told = _categories(lists["categories"])
    images = _Entries(lists["images"], lambda record: Example(image=record.get("id"), file=_file(record)))
    image_ids, sizes = images.whole("id", "image_id", "image_number"), _sizes(images)
    images.tell_repeated("image_id_repeated", image_ids, "id")
    for row, record in enumerate(images.records):
        if not _file(record):
            images.tell("file_name", row, "file_name")
    annotations, faults = _annotations(
        lists["annotations"], _names(image_ids, images.records), dict(zip(image_ids, sizes, strict=True))
    )
    problems += told + images.problems() + faults
    refuse(path, problems)
    return CocoFile(
        [name for _, name in categories],
        [category for category, _ in categories],
        np.array(image_ids, np.int64),
        np.array(sizes, np.int32),
        [record["file_name"] for record in images.records],
        annotations,
        problems,
    )


def read_categories(path: str) -> tuple[list[str], list[int]]:
    """Class names and category ids of an annotation file, in the order of ids. Raises UserError as `read_coco`."""
    lists, _ = read_lists(path)
    categories, problems = _categories(lists["categories"])
    refuse(path, problems)
    return [name for _, name in categories], [category for category, _ in categories]


class _Entries:
    """One list of a file, and which of its entries are wrong in which way."""

    def __init__(self, records: Sequence[dict], place: Callable[[dict], Example]) -> None:
        self.records, self._place = records, place
        self._found: dict[str, dict[int, str]] = {}  # kind -> row -> key

    def tell(self, kind: str, row: int, key: str) -> None:
        """Remember a row, once for each kind."""
        self._found.setdefault(kind, {}).setdefault(row, key)

    def tell_repeated(self, kind: str, values: Sequence[Any], key: str) -> None:
        """Remember the rows whose value another row before them has."""
        seen: set[Any] = set()
        for row, value in enumerate(values):
            if value is not None and value in seen:
                self.tell(kind, row, key)
            seen.add(value)

    def whole(self, key: str, refusal: str, note: str) -> list[int | None]:
        """The whole numbers under a key; None where there is none, which is refused."""
        return [self._whole(row, record.get(key), key, refusal, note) for row, record in enumerate(self.records)]

    def _whole(self, row: int, value: Any, key: str, refusal: str, note: str) -> int | None:
        found, usual = whole(value)
        if found is None:
            self.tell(refusal, row, key)
        elif not usual:
            self.tell(note, row, key)
        return found

    def problems(self) -> list[Problem]:
        """All that was remembered."""

        def example(row: int, key: str) -> Example:
            record = self.records[row]
            value = {key: record[key]} if key in record else f"no {key}"
            return self._place(record)._replace(value=value, number=row + 1 if record.get("id") is None else None)

        return [
            problem
            for kind, keys in self._found.items()
            for problem in problems_at(
                kind, sorted(keys), len(self.records), lambda row, keys=keys: example(row, keys[row])
            )
        ]


def _categories(records: Sequence[dict]) -> tuple[list[tuple[int, str]], list[Problem]]:
    """Ids and names in the order of the ids, and what is to be told of them."""
    entries = _Entries(records, lambda record: Example(category=record.get("id")))
    ids = entries.whole("id", "category_id", "category_number")
    names = []
    for row, record in enumerate(records):
        name = record.get("name")
        if type(name) is int or (isinstance(name, float) and math.isfinite(name)):
            entries.tell("name_number", row, "name")
            name = str(name)
        elif not isinstance(name, str) or not is_name(name):
            entries.tell("name", row, "name")
            name = None
        elif name != name.strip():
            entries.tell("name_spaces", row, "name")
            name = name.strip()
        names.append(name)
    entries.tell_repeated("category_id_repeated", ids, "id")
    entries.tell_repeated("name_repeated", names, "name")
    both = [pair for pair in zip(ids, names, strict=True) if None not in pair]
    return sorted(both), entries.problems()


def _sizes(images: _Entries) -> list[list[int]]:
    """Height and width of each image; 0 where it is not given."""
    sizes = []
    for row, record in enumerate(images.records):
        sizes.append([0, 0])
        for place, key in enumerate(("height", "width")):
            found, usual = (0, True) if record.get(key) is None else whole(record[key])
            if found is None or not 0 <= found <= LARGEST_SIDE:
                images.tell("size", row, key)
            else:
                sizes[row][place] = found
                if not usual:
                    images.tell("image_number", row, key)
    return sizes


def _annotations(
    records: Sequence[dict], names: Mapping[int, str], sizes: Mapping[int, Sequence[int]]
) -> tuple[Annotations | None, list[Problem]]:
    """The annotations, None if some are refused, and what is to be told of them; images are given by their ids."""

    def place(record: dict) -> Example:
        return Example(record.get("id"), record.get("image_id"), file=names.get(whole(record.get("image_id"))[0]))

    entries, rows = _Entries(records, place), range(len(records))
    ids = [_id(entries, row) for row in rows]
    image_ids = entries.whole("image_id", "image", "number")
    category_ids = entries.whole("category_id", "category", "number")
    xywh = [_box(entries, row, sizes.get(image, (0, 0))) for row, image in zip(rows, image_ids, strict=True)]
    areas = [_area(entries, row) for row in rows]
    is_crowd = [_crowd(entries, row) for row in rows]
    problems = entries.problems()
    if any(problem.level == "refusal" for problem in problems):
        return None, problems
    annotations = Annotations(
        ids,
        np.array(image_ids, np.int64),
        np.array(category_ids, np.int64),
        np.array(xywh, np.float64).reshape(-1, 4),
        np.array(areas, np.float64),
        np.array([flag is True for flag in is_crowd], bool),
        np.array([flag is not None for flag in is_crowd], bool),
    )
    return annotations, problems


def _id(entries: _Entries, row: int) -> Any:
    """The id of an annotation as a number where it is one; it only names the annotation in messages."""
    value = entries.records[row].get("id")
    found, usual = whole(value)
    if not usual:
        entries.tell("number", row, "id")
    return value if found is None else found


def _box(entries: _Entries, row: int, size: Sequence[int]) -> Sequence[float]:
    """x, y, width, height of an annotation, from its segmentation where it has no bbox; `size` is its image's."""
    record = entries.records[row]
    if record.get("bbox") in (None, []):
        outline = record.get("segmentation")
        found = segmentation_box(outline, size)
        if found is None:
            entries.tell("bbox_missing", row, "segmentation" if outline else "bbox")
            return NOTHING
        entries.tell("bbox_from_mask", row, "bbox")
        return found
    values = record["bbox"] if isinstance(record["bbox"], list) else []
    numbers = [number(value) for value in values]
    if len(numbers) != 4 or any(found is None for found, _ in numbers):
        entries.tell("bbox", row, "bbox")
        return NOTHING
    if not all(usual for _, usual in numbers):
        entries.tell("bbox_text", row, "bbox")
    return [found for found, _ in numbers]


def _area(entries: _Entries, row: int) -> float:
    """The area of an annotation, NaN where it has none."""
    found, usual = number(entries.records[row].get("area"))
    if found is None:
        entries.tell("area", row, "area")
        return np.nan
    if not usual:
        entries.tell("bbox_text", row, "area")
    return found


def _crowd(entries: _Entries, row: int) -> bool | None:
    """Whether an annotation is a crowd region; None where it does not say."""
    value = entries.records[row].get("iscrowd")
    found, usual = crowd(value)
    if found is None and value is not None and value == value:
        entries.tell("crowd", row, "iscrowd")
    elif not usual:
        entries.tell("crowd_text", row, "iscrowd")
    return found


def _names(image_ids: Sequence[int | None], records: Sequence[dict]) -> dict[int, str]:
    """The file of each image, by id."""
    return {key: name for key, record in zip(image_ids, records, strict=True) if (name := _file(record))}


def _file(record: dict) -> str | None:
    """The file of an image, if it names one that can be there."""
    name = record.get("file_name")
    return name if isinstance(name, str) and is_file_name(name) else None
