"""Several datasets trained on as one, each as often as a ratio says."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import PositiveFloat

from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.objects import choose_classes
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at


@register
class MixedDataset(CocoDataset):
    """The images of several datasets, one part after the other; classes are merged by name.

    parts: the datasets. Class k is the k-th name in the order of the parts, and in each in that of its ids.
    ratios: how often an epoch of training has each image of a part, one number for each part; 1 by default. Of n images
        at ratio r it has round(r * n): every image floor(r) times, and some, drawn anew in each epoch, once more.
    drop_empty_classes, class_names: see `CocoDataset`; of the classes of all parts together.

    A part need not have all classes; `problems` tell, since what it leaves without a box is background to training.
    Where image ids occur in several parts, all images are numbered from 1; a class has the category id of the first
    part that has it, or a new one if that is taken.
    """

    def __init__(
        self,
        parts: Sequence[CocoDataset],
        ratios: Sequence[PositiveFloat] | None = None,
        drop_empty_classes: bool = False,
        class_names: Derived[Sequence[str] | None] = None,
    ) -> None:
        if not parts or any(isinstance(part, MixedDataset) for part in parts):
            raise UserError("expected a list of datasets that are not mixed themselves", key="parts")
        self.parts, self.file, self.images = list(parts), " + ".join(part.file for part in parts), Path()
        self._starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        self._drawn = _drawn(parts, [1.0] * len(parts) if ratios is None else ratios)
        renumbered = self._join()
        self._choose_classes(class_names, drop_empty_classes)
        own = self.problems + renumbered
        self._tell_absent_classes()
        self.problems = [problem for part in parts for problem in part.problems] + own

    @property
    def notes(self) -> list[str]:
        """A line for every problem, with the file of the part that has it."""
        files = {id(problem): part.file for part in self.parts for problem in part.problems}
        return [f"{files.get(id(problem), self.file)}: {problem}" for problem in self.problems]

    @property
    def epoch_length(self) -> int:
        """How many images an epoch has, each as often as its part's ratio says."""
        return sum(self._drawn)

    def draw_epoch(self, rng: np.random.Generator) -> np.ndarray:
        """See `CocoDataset.draw_epoch`."""
        draws = []
        for start, part, drawn in zip(self._starts, self.parts, self._drawn, strict=True):
            times, rest = divmod(drawn, len(part))
            whole = [np.arange(len(part)) + copy * len(self) for copy in range(times)]
            once_more = rng.permutation(len(part))[:rest] + times * len(self)
            draws += [start + images for images in (*whole, once_more)]
        return rng.permutation(np.concatenate(draws))

    def load(self, index: int) -> np.ndarray:
        """Return RGB uint8 [H, W, 3]. Raises UserError as its part does, with the id that the image has there."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[number].load(int(index - self._starts[number]))

    def check_images(self, strict: bool = True) -> None:
        """See `CocoDataset.check_images`."""
        for part in self.parts:
            told = len(part.problems)
            part.check_images(strict)
            self.problems = self.problems + part.problems[told:]
        self.sizes = np.concatenate([part.sizes for part in self.parts])

    def _join(self) -> list[Problem]:
        """Put the parts' images and objects one after the other, and their classes; return what is to be told."""
        parts, self.problems = self.parts, []
        ids = np.concatenate([part.image_ids for part in parts])
        self.image_ids, self.sizes = ids, np.concatenate([part.sizes for part in parts])
        self._file_names = [str(part.images / name) for part in parts for name in part._file_names]
        self._offsets = np.cumsum([0, *np.concatenate([part.object_counts for part in parts])])
        self._xywh, self._areas, self._is_crowd = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("_xywh", "_areas", "_is_crowd")
        )
        found: dict[str, int] = {}  # name -> category id
        for part in parts:
            part.problems = part.problems + self._merge(part, found)
        self.class_names, self.category_ids = list(found), np.array(list(found.values()), np.int64)
        place = {name: number for number, name in enumerate(found)}
        classes = [np.array([place[name] for name in part.class_names])[part._classes] for part in parts]
        self._classes = np.concatenate(classes).astype(np.int32)
        unique, counts = np.unique(ids, return_counts=True)
        shared = np.flatnonzero(np.isin(ids, unique[counts > 1]))
        told = self._problems("image_id_shared", shared)
        if len(shared):
            self.image_ids = np.arange(1, len(ids) + 1)
        return told

    def _merge(self, part: CocoDataset, found: dict[str, int]) -> list[Problem]:
        """Add a part's classes to those found, with the ids they get; return what is to be told."""
        free = 1 + max(int(each.category_ids.max()) for each in self.parts)
        taken = []
        for number, (name, category_id) in enumerate(zip(part.class_names, part.category_ids.tolist(), strict=True)):
            if name not in found:
                if category_id in found.values():
                    taken.append(number)
                    category_id = max(free, 1 + max(found.values()))
                found[name] = category_id
        return problems_at(
            "category_id_taken",
            taken,
            part.num_classes,
            lambda k: Example(category=int(part.category_ids[k]), value=part.class_names[k]),
        )

    def _choose_classes(self, wanted: Sequence[str] | None, drop_empty: bool) -> None:
        """Leave out classes, with their objects, as `CocoDataset` does, and put the others into the order wanted."""
        names, count = self.class_names, self.num_classes
        boxes, used = (
            np.bincount(self._classes[~self._is_crowd], minlength=count),
            np.bincount(self._classes, minlength=count),
        )
        chosen, told = choose_classes(names, self.category_ids.tolist(), boxes, used > 0, self.file, wanted, drop_empty)
        class_of = np.full(count, -1, np.int32)
        class_of[chosen] = np.arange(len(chosen))
        self._classes = class_of[self._classes]
        left_out = self._classes < 0
        owners = np.repeat(np.arange(len(self)), self.object_counts)

        def example(row: int) -> Example:
            return Example(image=int(self.image_ids[owners[row]]), file=self._file_names[owners[row]])

        self.problems = self.problems + told + problems_at("class_left_out", left_out, len(left_out), example)
        self._offsets = np.cumsum([0, *np.bincount(owners[~left_out], minlength=len(self))])
        self._classes, self._xywh, self._areas, self._is_crowd = (
            column[~left_out] for column in (self._classes, self._xywh, self._areas, self._is_crowd)
        )
        self.class_names, self.category_ids = [names[place] for place in chosen], self.category_ids[chosen]

    def _tell_absent_classes(self) -> None:
        for part in self.parts:
            absent = [k for k, name in enumerate(self.class_names) if name not in part.class_names]
            part.problems = part.problems + problems_at(
                "class_not_here",
                absent,
                self.num_classes,
                lambda k: Example(category=int(self.category_ids[k]), value=self.class_names[k]),
            )


def _drawn(parts: Sequence[CocoDataset], ratios: Sequence[float]) -> list[int]:
    """How many images of each part an epoch has."""
    if len(ratios) != len(parts):
        raise UserError(f"expected one for each of the {len(parts)} parts, got {len(ratios)}", key="ratios")
    drawn = [int(ratio * len(part) + 0.5) for ratio, part in zip(ratios, parts, strict=True)]
    if 0 in drawn:
        number = drawn.index(0)
        count = len(parts[number])
        raise UserError(
            f"{ratios[number]:g} of the {count} images of {parts[number].file} is none; "
            f"make it {1 / count:.3g} or more, or leave that part out",
            key="ratios",
        )
    return drawn
