"""The complete check of datasets: every problem with its count, examples, and how training handles it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.coco_file import read_coco
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.evaluation_checks import evaluation_problems
from ppdet_lite.data.annotations.problems import (
    DatasetError,
    Example,
    Problem,
    keep_all_occurrences,
    problems_at,
    raise_if_refused,
)
from ppdet_lite.data.annotations.statistics import Statistics, format_statistics
from ppdet_lite.data.annotations.training_checks import training_problems
from ppdet_lite.data.checking.boxes import Distributions, box_problems, measure, percentiles
from ppdet_lite.data.checking.image_files import ImageCheck, Inspection, check_image_files, inspect_files, shared_images
from ppdet_lite.data.checking.readable_part import read_readable_part
from ppdet_lite.storage.files import plain_json

FATAL_KINDS = ("image_damaged", "size_other", "size_turned")  # problems of an image that end a run which loads it
LEVELS = ("refusal", "warning", "note")  # the most severe first
COLUMNS = ("set", "level", "kind", *Example._fields, "what")  # keys of the rows of `Check.rows`


class ReadSet(NamedTuple):
    """A dataset whose annotations can be read, at least in part."""

    dataset: CocoDataset
    content: CocoFile
    rows: list[int] | None  # positions of the readable annotations in the file; None: all are readable
    inspections: list[Inspection]  # one per image
    files: ImageCheck
    statistics: Statistics
    distributions: Distributions


@dataclass
class SetCheck:
    """One dataset and its problems."""

    name: str  # "train" or "val", followed by a number if it is a part of a mixed set; or "data"
    images: str
    annotations: str
    problems: list[Problem] = field(default_factory=list)
    error: str | None = None  # why the annotation file cannot be read at all
    read: ReadSet | None = None  # None if the annotations cannot be read

    @property
    def is_val(self) -> bool:
        """Whether it is a validation set."""
        return self.name.startswith("val")

    def kinds(self) -> set[str]:
        """The kinds of its problems."""
        return {problem.kind for problem in self.problems}


@dataclass
class Check:
    """The checked datasets of a training run, and whether training would refuse them."""

    sets: list[SetCheck]
    between: list[Problem] = field(default_factory=list)  # problems of the training and validation sets together
    refusal: str | None = None  # the error that would stop the training before or during its run

    def as_json(self) -> dict[str, Any]:
        """Return the content of check.json."""
        return {
            "refusal": self.refusal,
            "sets": {each.name: _set_json(each) for each in self.sets},
            "between": [_problem_json(problem) for problem in self.between],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Return a row with the keys COLUMNS for every occurrence of every problem."""
        problems = [(each.name, problem) for each in self.sets for problem in each.problems]
        problems += [("together", problem) for problem in self.between]
        return [_row(name, problem, example) for name, problem in problems for example in problem.occurrences]


@keep_all_occurrences()
def check_set(
    name: str, images: str, annotations: str, inspect: Callable[[Sequence[str]], list[Inspection]] = inspect_files
) -> SetCheck:
    """Check a dataset: its annotations, every image file (read by `inspect`), and its boxes.

    If only single annotations are refused, the others are still checked. If the file is refused as a whole, neither
    images nor boxes are checked.
    """
    result, rows = SetCheck(name, images, annotations), None
    refused: list[Problem] = []
    try:
        dataset, content = CocoDataset(images, annotations), read_coco(annotations)
    except DatasetError as error:
        result.problems, readable = list(error.problems), read_readable_part(images, annotations)
        if readable is None:
            return result
        refused = [problem for problem in error.problems if problem.level == "refusal"]
        dataset, content, rows = readable
    except UserError as error:
        result.error = str(error)
        return result
    inspections = inspect([dataset.info(row).path for row in range(len(dataset))])
    files = check_image_files(dataset, content, inspections)
    result.problems = [*refused, *dataset.problems, *files.problems, *box_problems(content)]
    if name in ("train", "data"):  # a part of a mixed set need not contain all classes
        result.problems += training_problems(dataset)
    if name == "data" or result.is_val:
        result.problems += evaluation_problems(dataset)
    result.problems.sort(key=lambda problem: LEVELS.index(problem.level))
    result.read = ReadSet(
        dataset=dataset,
        content=content,
        rows=rows,
        inspections=inspections,
        files=files,
        statistics=dataset.statistics(),
        distributions=measure(dataset),
    )
    return result


def check(sets: Sequence[SetCheck], training: Callable[[], None], skip_bad_images: bool = False) -> Check:
    """Combine the checks of the training set and, optionally, the validation set.

    training: runs the checks that training runs before its first step; raises UserError if they fail.
    skip_bad_images: bad training images do not end a run (loader.on_bad_image: skip).
    """
    result = Check(list(sets), _between(sets))
    try:
        training()
    except UserError as error:
        result.refusal = str(error)
    for each in sets:
        for problem in each.problems:
            if problem.kind in FATAL_KINDS and (each.is_val or not skip_bad_images):
                result.refusal = result.refusal or f"{each.annotations}: {problem}"
    return result


def check_for_training(images: str, annotations: str) -> None:
    """Run the checks that training runs on its training set before the first step. Raises UserError if they fail."""
    dataset = CocoDataset(images, annotations)
    raise_if_refused(annotations, training_problems(dataset))
    dataset.check_images()


def report_lines(check: Check) -> list[str]:
    """Return a check as lines of text."""
    lines = []
    for each in check.sets:
        lines += [f"{each.name}: {each.annotations}, images in {each.images}"]
        if each.error:
            lines.append(f"  refusal: {each.error}")
        lines += [line for problem in each.problems for line in _lines(problem)]
        if not each.problems and not each.error:
            lines.append("  no problems")
        if each.read is None:
            lines.append("  images and boxes were not checked: correct the problems above first")
    if check.between:
        lines.append("train and val together:")
        lines += [line for problem in check.between for line in _lines(problem)]
    read = [(each.name, each.read) for each in check.sets if each.read is not None]
    same_classes = all(one.dataset.class_names == read[0][1].dataset.class_names for _, one in read)
    for table in [read] if same_classes and read else [[each] for each in read]:
        names = table[0][1].dataset.class_names
        lines += ["", format_statistics({name: one.statistics for name, one in table}, names)]
    return lines


def print_check(check: Check) -> None:
    """Print a check to stdout."""
    print("\n".join(report_lines(check)), flush=True)


def _lines(problem: Problem) -> list[str]:
    head = f"  {problem.level}: {problem.count} of {problem.total} {problem.what}: {problem.consequence}"
    lines = [head, *(f"      {example}" for example in problem.examples)]
    if problem.count > len(problem.examples):
        lines.append(f"      ... {problem.count - len(problem.examples)} more")
    return lines


@keep_all_occurrences()
def _between(sets: Sequence[SetCheck]) -> list[Problem]:
    """Return the problems of the training and validation sets together."""
    read = [(each.is_val, each.read) for each in sets if each.read is not None]
    train, val = [one for is_val, one in read if not is_val], [one for is_val, one in read if is_val]
    if not train or not val:
        return []
    train_files = [(one.dataset, one.inspections) for one in train]
    problems = [problem for one in val for problem in shared_images(one.dataset, one.inspections, train_files)]
    counts: dict[str, dict[str, int]] = {}
    for is_val, one in read:
        for name, count in zip(one.dataset.class_names, one.statistics.boxes.tolist(), strict=True):
            counts.setdefault(name, {"train": 0, "val": 0})["val" if is_val else "train"] += count
    names = list(counts)
    one_split = np.array([sum(count > 0 for count in counts[name].values()) == 1 for name in names])
    return problems + problems_at(
        "class_one_split", one_split, len(names), lambda k: Example(value={"class": names[k]} | counts[names[k]])
    )


def _set_json(each: SetCheck) -> dict[str, Any]:
    result: dict[str, Any] = {"annotations": each.annotations, "images": each.images, "error": each.error}
    result["problems"] = [_problem_json(problem) for problem in each.problems]
    if (read := each.read) is not None:
        boxes = dict(zip(read.dataset.class_names, read.statistics.boxes.tolist(), strict=True))
        result["statistics"] = read.statistics._asdict() | {"boxes": boxes}
        result["distributions"] = {name: percentiles(values) for name, values in read.distributions._asdict().items()}
    return result


def _problem_json(problem: Problem) -> dict[str, Any]:
    keys = ("kind", "level", "count", "total", "what", "consequence")
    examples = [
        {k: plain_json(v) for k, v in example._asdict().items() if v is not None} for example in problem.examples
    ]
    return {**{key: getattr(problem, key) for key in keys}, "examples": examples}


def _row(name: str, problem: Problem, occurrence: Example) -> dict[str, Any]:
    value = None if occurrence.value is None else json.dumps(occurrence.value, ensure_ascii=False)
    cells = (name, problem.level, problem.kind, *occurrence._replace(value=value), problem.what)
    return dict(zip(COLUMNS, cells, strict=True))
