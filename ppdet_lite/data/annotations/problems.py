"""What can be wrong with a data set, each kind with what follows from it; how it is counted, shown and refused."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError

SHOWN = 5  # places of a problem that are told as examples; others are kept where someone asks for them
LONGEST_VALUE = 200  # characters

_kept: ContextVar[int | None] = ContextVar("kept", default=SHOWN)


class Kind(NamedTuple):
    """One way to be wrong: "N of M `what`: `consequence`"."""

    level: Literal["note", "warning", "refusal"]  # refusal: such data are not read, or not trained on
    what: str
    consequence: str


KINDS = {
    # images
    "image_number": Kind("note", "images have a whole number as text or as 1.0", "read as the number"),
    "image_id": Kind("refusal", "images have no whole number as id", "correct the file"),
    "image_id_repeated": Kind("refusal", "images have an id that another one has", "correct the file"),
    "file_name": Kind("refusal", "images have no text as file_name", "correct the file"),
    "file_name_backslash": Kind("note", "images have a file_name with backslashes", "read as /"),
    "file_twice": Kind("warning", "images name a file that another one names too", "each counts as an image"),
    "content_twice": Kind("warning", "image files have the content of another one", "each counts as an image"),
    "content_in_both": Kind(
        "warning", "image files are in both splits", "what is learned by heart counts as found; keep them in one"
    ),
    "image_damaged": Kind("refusal", "image files are damaged", "a run ends when it meets one (loader.on_bad_image)"),
    "file_missing": Kind("refusal", "images have no file where it is looked for", "correct `images` or file_name"),
    "size": Kind("refusal", "images have a width or height that is no size", "correct the file"),
    "size_missing": Kind("note", "images have no width or height", "read from the image files"),
    "size_unknown": Kind("refusal", "images have no width or height, nor a file to read them from", "give both"),
    "size_swapped": Kind("warning", "images have width and height swapped", "taken from the image files"),
    "size_turned": Kind("refusal", "images have the size from before their EXIF rotation", "annotate them as shown"),
    "size_other": Kind("refusal", "images have another size than their file", "correct the file, or `images`"),
    "empty_kept": Kind("note", "images are without objects", "kept (keep_empty)"),
    "empty_left_out": Kind("note", "images are without objects", "left out (keep_empty)"),
    # categories
    "category_number": Kind("note", "categories have a whole number as text or as 1.0", "read as the number"),
    "category_id": Kind("refusal", "categories have no whole number as id", "correct the file"),
    "category_id_repeated": Kind("refusal", "categories have an id that another one has", "correct the file"),
    "name": Kind("refusal", "categories have no name, or one that cannot be printed", "correct the file"),
    "name_repeated": Kind("refusal", "categories have a name that another one has", "correct the file"),
    "name_spaces": Kind("note", "categories have a name with spaces around it", "read without them"),
    "name_number": Kind("note", "categories have a number as name", "read as text"),
    "class_unused": Kind("note", "categories are unknown to the model or training set and have no box", "left out"),
    "class_dropped": Kind("note", "categories have no box", "left out (drop_empty_classes)"),
    "class_left_out": Kind(
        "warning",
        "boxes are of classes that training leaves out (drop_empty_classes)",
        "left out, AP does not see them",
    ),
    "class_one_split": Kind("warning", "classes have boxes in one split alone", "never learned, or never measured"),
    "class_empty": Kind(
        "warning", "classes have no box to learn from", "the model gets them; drop_empty_classes leaves them out"
    ),
    # mixtures
    "class_not_here": Kind(
        "warning", "classes of the mixture are not in this part", "in its images they count as background"
    ),
    "category_id_taken": Kind("note", "categories have an id that another part has for another class", "numbered anew"),
    "image_id_shared": Kind("note", "images have an id that one of another part has", "all are numbered from 1"),
    # annotations
    "number": Kind("note", "annotations have a whole number as text or as 1.0", "read as the number"),
    "annotation_id": Kind("note", "annotations have an id that is missing, 0, no number or repeated", "renumbered"),
    "image": Kind("refusal", "annotations have no whole number as image_id", "correct the file"),
    "image_unknown": Kind("refusal", "annotations are of an image that is not listed", "correct the file"),
    "category": Kind("refusal", "annotations have no whole number as category_id", "correct the file"),
    "category_unknown": Kind("refusal", "annotations are of a category that is not listed", "correct the file"),
    "bbox": Kind("refusal", "annotations have a bbox that is not four numbers", "write x, y, width, height"),
    "bbox_text": Kind("note", "annotations have text as numbers of bbox or area", "read as the numbers"),
    "bbox_missing": Kind(
        "refusal", "annotations have neither a bbox nor a segmentation to take it from", "give a bbox"
    ),
    "bbox_from_mask": Kind("note", "annotations have no bbox", "taken from their segmentation"),
    "area": Kind("refusal", "annotations have an area that is no number", "correct the file"),
    "area_missing": Kind("note", "annotations have no area, or none above 0", "taken as w * h"),
    "crowd": Kind("refusal", "annotations have an iscrowd that is neither 0 nor 1", "correct the file"),
    "crowd_text": Kind("note", "annotations have an iscrowd that is no whole number", "read as 0 or 1"),
    "crowd_missing": Kind("note", "annotations have no iscrowd", "taken as 0"),
    "box_dropped": Kind("note", "boxes have no finite area inside their image", "dropped"),
    "box_clipped": Kind("note", "boxes reach beyond their image", "clipped"),
    "box_corners": Kind(
        "warning",
        "boxes are clipped or dropped",
        "are they corners x1, y1, x2, y2? COCO has x, y, width, height",
    ),
    "box_twice": Kind("warning", "boxes are nearly the same as one before them of their class", "both are learned"),
    "box_of_two": Kind("warning", "boxes are nearly the same as one of another class", "both are learned"),
    "boxes_none": Kind("refusal", "images have no box that is no crowd", "there is nothing to learn; annotate some"),
    # the file
    "encoding": Kind("note", "files are not UTF-8", "read as what they are"),
    "record": Kind("refusal", "entries are no mapping {...}", "correct the file"),
}


class Example(NamedTuple):
    """One place where a problem is; None where something does not apply."""

    annotation: Any = None  # ids are as the file has them
    image: Any = None
    category: Any = None
    file: str | None = None
    value: Any = None
    number: int | None = None  # in its list, counted from 1, where it has no id

    def __str__(self) -> str:
        named = {"annotation": self.annotation, "image": self.image, "category": self.category}
        ids = [f"{name} {_cut(_json(value))}" for name, value in named.items() if value is not None]
        numbered = [] if self.number is None else [f"no. {self.number}"]
        place = ", ".join([*numbered, *([" of ".join(ids)] if ids else [])])
        place += f" ({shown(self.file)})" if self.file else ""
        if not place:
            return shown(self.value)
        return place if self.value is None else f"{place}: {shown(self.value)}"


@dataclass(frozen=True)
class Problem:
    """What is wrong in one way: how often, of how many, and where for example."""

    kind: str  # of KINDS
    count: int
    total: int
    places: tuple[Example, ...] = ()  # the first ones; all of them within `every_place`

    @property
    def examples(self) -> tuple[Example, ...]:
        """The places that are shown."""
        return self.places[:SHOWN]

    @property
    def level(self) -> str:
        """note, warning or refusal."""
        return KINDS[self.kind].level

    @property
    def what(self) -> str:
        """What is wrong, to be read after "N of M"."""
        return KINDS[self.kind].what

    @property
    def consequence(self) -> str:
        """What reading or training does about it, or the user can do."""
        return KINDS[self.kind].consequence

    def __str__(self) -> str:
        first = f"; the first: {self.examples[0]}" if self.examples else ""
        return f"{self.count} of {self.total} {self.what}: {self.consequence}{first}"


class Refused(UserError):
    """Data that are not read, or not trained on; `problems` has all that was found until then."""

    def __init__(self, file: str, problems: Sequence[Problem]) -> None:
        first, *more = [problem for problem in problems if problem.level == "refusal"]
        others = f" (and {len(more)} other faults: tools/check_data.py)" if more else ""
        super().__init__(f"{file}: {first}{others}", key="images" if first.kind == "file_missing" else "annotations")
        self.problems = list(problems)


@contextlib.contextmanager
def every_place() -> Iterator[None]:
    """Problems that are found inside keep all their places; a training run, which lives long, keeps the first few."""
    before = _kept.set(None)
    try:
        yield
    finally:
        _kept.reset(before)


def problems_at(
    kind: str, rows: Sequence[int] | np.ndarray, total: int, example: Callable[[int], Example]
) -> list[Problem]:
    """The problem of some rows of `total`, given as indices or as a bool mask; an empty list where there is none."""
    rows = np.asarray(rows)
    rows = np.flatnonzero(rows) if rows.dtype == bool else rows
    if not len(rows):
        return []
    return [Problem(kind, len(rows), total, tuple(example(int(row)) for row in rows[: _kept.get()]))]


def refuse(file: str, problems: Sequence[Problem]) -> None:
    """Raise Refused if a problem is one for which data are not read."""
    if any(problem.level == "refusal" for problem in problems):
        raise Refused(file, problems)


def shown(value: Any) -> str:
    """A value as it stands in the file, on one line, cut where it is long; bare text is a remark of ours."""
    return _cut(value if isinstance(value, str) else _json(value))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    if not text.isprintable():
        text = json.dumps(text)[1:-1]
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + "..."
