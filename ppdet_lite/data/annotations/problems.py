"""The kinds of problems that a dataset can have, and how they are counted, formatted and raised as errors."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError

MAX_EXAMPLES = 5  # occurrences of a problem that are kept and shown; within `keep_all_occurrences` all are kept
MAX_VALUE_LENGTH = 200  # characters

_kept: ContextVar[int | None] = ContextVar("kept", default=MAX_EXAMPLES)


class Kind(NamedTuple):
    """One kind of problem, formatted as "N of M `what`: `consequence`"."""

    level: Literal["note", "warning", "refusal"]  # refusal: the dataset is not read, or not trained on
    what: str  # begins with noun and verb, in the plural
    consequence: str


SINGULAR = {
    "images": "image", "categories": "category", "classes": "class", "files": "file",
    "annotations": "annotation", "boxes": "box", "entries": "entry", "have": "has", "are": "is", "reach": "reaches",
}  # fmt: skip

KINDS = {
    # images
    "image_number": Kind("note", "images have an integer written as text or as 1.0", "read as an integer"),
    "image_id": Kind("refusal", "images have an id that is missing or not an integer", "correct the file"),
    "image_id_repeated": Kind("refusal", "images have the id of an earlier image", "correct the file"),
    "file_name": Kind("refusal", "images have no valid file_name", "correct the file"),
    "file_name_backslash": Kind("note", "images have backslashes in file_name", "read as slashes (/)"),
    "file_twice": Kind("warning", "images have the file_name of an earlier image", "counted as separate images"),
    "content_twice": Kind("warning", "files have the same content as an earlier file", "counted as separate images"),
    "content_in_both": Kind("warning", "files are in both splits", "this inflates AP; keep each in one split"),
    "image_damaged": Kind("refusal", "files are damaged", "a run stops when it reads one (see loader.on_bad_image)"),
    "file_missing": Kind("refusal", "images have no file at the expected path", "correct `images` or file_name"),
    "size": Kind("refusal", "images have an invalid width or height", "correct the file"),
    "size_missing": Kind("note", "images have no width or height", "read from the image files"),
    "size_unknown": Kind("refusal", "images have no width or height and no readable file", "add width and height"),
    "size_swapped": Kind("warning", "images have width and height swapped", "taken from the image files"),
    "size_turned": Kind("refusal", "images have the size from before EXIF rotation", "annotate images as displayed"),
    "size_other": Kind(
        "refusal", "images have a size that differs from the image file", "correct the file or `images`"
    ),
    "empty_kept": Kind("note", "images have no objects", "kept (keep_empty)"),
    "empty_left_out": Kind("note", "images have no objects", "left out (keep_empty)"),
    # categories
    "category_number": Kind("note", "categories have an integer written as text or as 1.0", "read as an integer"),
    "category_id": Kind("refusal", "categories have an id that is missing or not an integer", "correct the file"),
    "category_id_repeated": Kind("refusal", "categories have the id of an earlier category", "correct the file"),
    "name": Kind("refusal", "categories have a missing or unprintable name", "correct the file"),
    "name_repeated": Kind("refusal", "categories have the name of an earlier category", "correct the file"),
    "name_spaces": Kind("note", "categories have spaces around the name", "read without them"),
    "name_number": Kind("note", "categories have a number as name", "read as text"),
    "class_unused": Kind("note", "categories are unused and not classes of the model or training set", "left out"),
    "class_dropped": Kind("note", "categories have no boxes", "left out (drop_empty_classes)"),
    "class_left_out": Kind("warning", "boxes have a class that drop_empty_classes leaves out", "left out, also of AP"),
    "class_one_split": Kind("warning", "classes have boxes in only one split", "never learned, or never evaluated"),
    "class_empty": Kind("warning", "classes have no boxes to train on", "kept unless drop_empty_classes is true"),
    # mixtures
    "class_not_here": Kind("warning", "classes are missing from this part of the mixture", "background in its images"),
    "category_id_taken": Kind("note", "categories have an id that another part uses for another class", "renumbered"),
    "image_id_shared": Kind("note", "images have the id of an image of another part", "all are numbered from 1"),
    # annotations
    "number": Kind("note", "annotations have an integer written as text or as 1.0", "read as an integer"),
    "annotation_id": Kind("note", "annotations have a missing, zero, repeated or non-integer id", "renumbered"),
    "image": Kind("refusal", "annotations have an image_id that is missing or not an integer", "correct the file"),
    "image_unknown": Kind("refusal", "annotations have an image_id that no image has", "correct the file"),
    "category": Kind("refusal", "annotations have a category_id that is missing or not an integer", "correct the file"),
    "category_unknown": Kind("refusal", "annotations have a category_id that no category has", "correct the file"),
    "bbox": Kind("refusal", "annotations have a bbox that is not four numbers", "write x, y, width, height"),
    "bbox_text": Kind("note", "annotations have numbers written as text in bbox or area", "read as numbers"),
    "bbox_missing": Kind("refusal", "annotations have neither a bbox nor a usable segmentation", "add a bbox"),
    "bbox_from_mask": Kind("note", "annotations have no bbox", "computed from the segmentation"),
    "area": Kind("refusal", "annotations have an area that is not a number", "correct the file"),
    "area_missing": Kind("note", "annotations have no area, or none above 0", "computed as width * height"),
    "crowd": Kind("refusal", "annotations have an iscrowd other than 0 and 1", "correct the file"),
    "crowd_text": Kind("note", "annotations have an iscrowd that is not an integer", "read as 0 or 1"),
    "crowd_missing": Kind("note", "annotations have no iscrowd", "read as 0"),
    "box_dropped": Kind("note", "boxes have no finite area inside the image", "dropped"),
    "box_clipped": Kind("note", "boxes reach beyond the image", "clipped"),
    "box_corners": Kind(
        "warning", "boxes are clipped or dropped", "is bbox x1, y1, x2, y2 and not x, y, width, height?"
    ),
    "box_fractions": Kind(
        "refusal", "boxes have only values from 0 to 1", "are they fractions of the image's size? convert to pixels"
    ),
    "box_fraction": Kind(
        "warning", "boxes have only values from 0 to 1", "are they fractions of the image's size? read as pixels"
    ),
    "box_scale": Kind(
        "warning", "boxes are in the upper left quarter of their image", "are they percentages, or of smaller images?"
    ),
    "box_ignored": Kind(
        "warning", "boxes have ignore: 1", "used as without it, as pycocotools does; iscrowd: 1 excludes them"
    ),
    "box_rotated": Kind(
        "warning",
        "boxes have a rotation (CVAT's attributes.rotation)",
        "read without it: they do not enclose the object",
    ),
    "box_twice": Kind("warning", "boxes are nearly equal to an earlier box of the same class", "both are trained on"),
    "box_of_two": Kind("warning", "boxes are nearly equal to a box of another class", "both are trained on"),
    "objects_many": Kind(
        "warning",
        "images have more than 100 objects of a class",
        "COCO counts 100 detections of each: AP stays below 1",
    ),
    "boxes_none": Kind("refusal", "images have no boxes other than crowd regions", "annotate objects to train on"),
    # the file
    "encoding": Kind("note", "files are not UTF-8", "read in the encoding detected"),
    "record": Kind("refusal", "entries are not of the form {...}", "correct the file"),
}


class Example(NamedTuple):
    """One occurrence of a problem; a field is None where it does not apply."""

    annotation: Any = None  # ids as in the file
    image: Any = None
    category: Any = None
    file: str | None = None
    value: Any = None  # the faulty value as in the file, or a remark as text
    number: int | None = None  # position in its list, counted from 1, of an entry without id

    def __str__(self) -> str:
        named = {"annotation": self.annotation, "image": self.image, "category": self.category}
        ids = [f"{name} {_shorten(_json(value))}" for name, value in named.items() if value is not None]
        numbered = [] if self.number is None else [f"entry {self.number}"]
        place = ", ".join([*numbered, *([" of ".join(ids)] if ids else [])])
        place += f" ({format_value(self.file)})" if self.file else ""
        if not place:
            return format_value(self.value)
        return place if self.value is None else f"{place}: {format_value(self.value)}"


@dataclass(frozen=True)
class Problem:
    """All occurrences of one kind of problem in a dataset: `count` of `total` records have it."""

    kind: str  # a key of KINDS
    count: int
    total: int
    occurrences: tuple[Example, ...] = ()  # the first MAX_EXAMPLES; all of them within `keep_all_occurrences`

    @property
    def examples(self) -> tuple[Example, ...]:
        """Return the occurrences to show."""
        return self.occurrences[:MAX_EXAMPLES]

    @property
    def level(self) -> str:
        """Return "note", "warning" or "refusal"."""
        return KINDS[self.kind].level

    @property
    def what(self) -> str:
        """Return what is wrong, to be read after "N of M"; noun and verb are singular or plural accordingly."""
        noun, verb, rest = KINDS[self.kind].what.split(" ", maxsplit=2)
        return f"{SINGULAR[noun] if self.total == 1 else noun} {SINGULAR[verb] if self.count == 1 else verb} {rest}"

    @property
    def consequence(self) -> str:
        """Return what reading or training does about the problem, or what the user can do."""
        return KINDS[self.kind].consequence

    def __str__(self) -> str:
        first = f"; the first: {self.examples[0]}" if self.examples else ""
        return f"{self.count} of {self.total} {self.what}: {self.consequence}{first}"


class DatasetError(UserError):
    """A dataset that is not read, or not trained on; `problems` contains all problems found so far."""

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        first, *more = [problem for problem in problems if problem.level == "refusal"]
        others = f" (and {len(more)} more kinds of errors; ppdet-lite check-data lists them)" if more else ""
        super().__init__(f"{file}: {first}{others}", key="images" if first.kind == "file_missing" else "annotations")
        self.problems = list(problems)


@contextlib.contextmanager
def keep_all_occurrences() -> Iterator[None]:
    """Keep all occurrences of the problems found in this context; by default only the first few stay in memory."""
    before = _kept.set(None)
    try:
        yield
    finally:
        _kept.reset(before)


def problems_at(
    kind: str, rows: Sequence[int] | np.ndarray, total: int, example: Callable[[int], Example]
) -> list[Problem]:
    """Return one problem of `rows` out of `total` records, or an empty list where `rows` is empty.

    rows: indices, or a bool mask. example: returns the occurrence at a row.
    """
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    if not len(rows):
        return []
    return [Problem(kind, len(rows), total, tuple(example(int(row)) for row in rows[: _kept.get()]))]


def raise_if_refused(file: str, problems: Sequence[Problem]) -> None:
    """Raise DatasetError if a problem has the level "refusal"."""
    if any(problem.level == "refusal" for problem in problems):
        raise DatasetError(file, problems)


def format_value(value: Any) -> str:
    """Format a value on one line, shortened where it is long: text as it is, other values as JSON."""
    return _shorten(value if isinstance(value, str) else _json(value))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shorten(text: str) -> str:
    if not text.isprintable():
        text = json.dumps(text)[1:-1]
    return text if len(text) <= MAX_VALUE_LENGTH else text[:MAX_VALUE_LENGTH] + "..."
