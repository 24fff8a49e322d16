"""All that is wrong with data sets, counted, with examples and what training does about it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.coco_file import read_coco
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.problems import Example, Problem, Refused, every_place, problems_at, refuse
from ppdet_lite.data.annotations.statistics import Statistics, format_statistics
from ppdet_lite.data.annotations.training_checks import training_problems
from ppdet_lite.data.checking.boxes import Numbers, box_problems, measures, numbers
from ppdet_lite.data.checking.image_files import ImageCheck, Look, check_image_files, look_at, shared_images
from ppdet_lite.data.checking.readable_part import read_rest

ENDS = ("image_damaged", "size_other", "size_turned")  # a run that meets such an image does not go on
LEVELS = ("refusal", "warning", "note")  # the worst first
COLUMNS = ("set", "level", "kind", *Example._fields, "what")  # of `Check.rows`


@dataclass
class SetCheck:
    """One data set, and what was found in it."""

    name: str  # train or val, with a number where it is a part; or data
    images: str
    annotations: str
    problems: list[Problem] = field(default_factory=list)
    error: str | None = None  # why the annotations cannot be read at all
    content: CocoFile | None = None  # None where they are not read
    dataset: CocoDataset | None = None
    kept: list[int] | None = None  # rows of the annotations that could be read; None: all
    looks: list[Look] = field(default_factory=list)  # of each image
    files: ImageCheck | None = None
    statistics: Statistics | None = None
    numbers: Numbers | None = None

    @property
    def is_val(self) -> bool:
        """Whether it is for validation."""
        return self.name.startswith("val")

    def kinds(self) -> set[str]:
        """The kinds of its problems."""
        return {problem.kind for problem in self.problems}


@dataclass
class Check:
    """Data sets that belong together."""

    sets: list[SetCheck]
    between: list[Problem] = field(default_factory=list)  # problems of the sets together
    refusal: str | None = None  # what training says, if it would not begin or come to an end

    def as_json(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return {
            "refusal": self.refusal,
            "sets": {each.name: _set_json(each) for each in self.sets},
            "between": [_problem_json(problem) for problem in self.between],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every place that something is wrong at, each a row with COLUMNS."""
        found = [(each.name, problem) for each in self.sets for problem in each.problems]
        found += [("together", problem) for problem in self.between]
        return [_row(name, problem, place) for name, problem in found for place in problem.places]


@every_place()
def check_set(
    name: str, images: str, annotations: str, look: Callable[[Sequence[str]], list[Look]] = look_at
) -> SetCheck:
    """Look at a data set: its annotations, every image file (by `look`), its boxes.

    Where single annotations are refused, the others are looked at all the same; where more is, nothing else can be.
    """
    found, refused = SetCheck(name, images, annotations), []
    try:
        found.dataset, found.content = CocoDataset(images, annotations), read_coco(annotations)
    except Refused as error:
        found.problems, rest = list(error.problems), read_rest(images, annotations)
        if rest is None:
            return found
        refused = [problem for problem in error.problems if problem.level == "refusal"]
        found.dataset, found.content, found.kept = rest
    except UserError as error:
        found.error = str(error)
        return found
    dataset = found.dataset
    found.looks = look([dataset.info(row).path for row in range(len(dataset))])
    found.files = check_image_files(dataset, found.content, found.looks)
    found.problems = [
        *refused,
        *dataset.problems,
        *found.files.problems,
        *box_problems(found.content),
        *(training_problems(dataset) if name in ("train", "data") else []),  # a part need not have all classes
    ]
    found.problems.sort(key=lambda problem: LEVELS.index(problem.level))
    found.statistics, found.numbers = dataset.statistics(), numbers(dataset)
    return found


def check(sets: Sequence[SetCheck], training: Callable[[], None], survivable: bool = False) -> Check:
    """Put together what was found in the training set and, maybe, a validation set.

    training: what training does with them before its first step; it raises UserError where it refuses.
    survivable: bad training images do not end a run (loader.on_bad_image: skip).
    """
    found = Check(list(sets), _between(sets))
    try:
        training()
    except UserError as error:
        found.refusal = str(error)
    for each in sets:
        for problem in each.problems:
            if problem.kind in ENDS and (each.is_val or not survivable):
                found.refusal = found.refusal or f"{each.annotations}: {problem}"
    return found


def begin_training(images: str, annotations: str) -> None:
    """Do with a training set what a run does before its first step. Raises UserError where it refuses."""
    dataset = CocoDataset(images, annotations)
    refuse(annotations, training_problems(dataset))
    dataset.check_images()


def report_lines(found: Check) -> list[str]:
    """A check in words."""
    lines = []
    for each in found.sets:
        lines += [f"{each.name}: {each.annotations}, images in {each.images}"]
        lines += [f"  refusal: {each.error}"] if each.error else []
        lines += [line for problem in each.problems for line in _lines(problem)]
        lines += ["  nothing is wrong"] * (not each.problems and not each.error)
        lines += ["  the images and boxes were not looked at: correct these first"] * (each.dataset is None)
    for problem in found.between:
        lines += ["together:"] * (problem is found.between[0]) + _lines(problem)
    columns = {each.name: each for each in found.sets if each.statistics is not None}
    names = [each.dataset.class_names for each in columns.values()]
    for same in ([*columns.values()],) if all(each == names[0] for each in names) else [[c] for c in columns.values()]:
        if same:
            lines += ["", format_statistics({each.name: each.statistics for each in same}, same[0].dataset.class_names)]
    return lines


def tell(found: Check) -> None:
    """Print a check."""
    print("\n".join(report_lines(found)), flush=True)


def _lines(problem: Problem) -> list[str]:
    head = f"  {problem.level}: {problem.count} of {problem.total} {problem.what}: {problem.consequence}"
    more = [f"      ... {problem.count - len(problem.examples)} more"] * (problem.count > len(problem.examples))
    return [head, *(f"      {example}" for example in problem.examples), *more]


@every_place()
def _between(sets: Sequence[SetCheck]) -> list[Problem]:
    """What is wrong with training and validation sets together."""
    read = [each for each in sets if each.dataset is not None]
    train, val = [each for each in read if not each.is_val], [each for each in read if each.is_val]
    if not train or not val:
        return []
    known = [(each.dataset, each.looks) for each in train]
    problems = [problem for each in val for problem in shared_images(each.dataset, each.looks, known)]
    counts: dict[str, dict[str, int]] = {}
    for each in read:
        for name, count in zip(each.dataset.class_names, each.statistics.boxes.tolist(), strict=True):
            counts.setdefault(name, {"train": 0, "val": 0})["val" if each.is_val else "train"] += count
    names = list(counts)
    alone = np.array([sum(count > 0 for count in counts[name].values()) == 1 for name in names])
    return problems + problems_at(
        "class_one_split", alone, len(names), lambda k: Example(value={"class": names[k]} | counts[names[k]])
    )


def _set_json(each: SetCheck) -> dict[str, Any]:
    result: dict[str, Any] = {"annotations": each.annotations, "images": each.images, "error": each.error}
    result["problems"] = [_problem_json(problem) for problem in each.problems]
    if each.statistics is not None:
        boxes = dict(zip(each.dataset.class_names, each.statistics.boxes.tolist(), strict=True))
        result["statistics"] = each.statistics._asdict() | {"boxes": boxes}
        result["distributions"] = {name: measures(values) for name, values in each.numbers._asdict().items()}
    return result


def _problem_json(problem: Problem) -> dict[str, Any]:
    return {
        "kind": problem.kind,
        "level": problem.level,
        "count": problem.count,
        "total": problem.total,
        "what": problem.what,
        "consequence": problem.consequence,
        "examples": [_known(example._asdict()) for example in problem.examples],
    }


def _row(name: str, problem: Problem, place: Example) -> dict[str, Any]:
    value = None if place.value is None else json.dumps(place.value, ensure_ascii=False)
    cells = (name, problem.level, problem.kind, *place._replace(value=value), problem.what)
    return dict(zip(COLUMNS, cells, strict=True))


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
