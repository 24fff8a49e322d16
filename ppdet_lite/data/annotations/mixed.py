"""A dataset that consists of several datasets, each repeated by a ratio in every epoch of training."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppdet_lite.config.constrained_types import PositiveFloat
from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.objects import choose_classes
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at


@register
class MixedDataset(CocoDataset):
    """The concatenation of several datasets, with classes merged by name.

    parts: the datasets. The classes are those of the first part in the order of its ids, then those that the next part
        adds, and so on.
    ratios: how often an epoch of training contains each image of a part, one number for each part; 1 by default. From n
        images at ratio r it takes round(r * n): every image floor(r) times, and a random subset, different in each
        epoch, once more.
    drop_empty_classes, class_names: see `CocoDataset`; they apply to the merged classes.

    A part may lack some of the classes. `problems` then contains a warning, since objects of those classes are not
    annotated in its images and are trained as background. If image ids occur in several parts, all images are numbered
    from 1. A class has the category id of the first part that contains it, or a new one if another class has that id.
    """

    def __init__(
        self,
        parts: Sequence[CocoDataset],
        ratios: Sequence[PositiveFloat] | None = None,
        drop_empty_classes: bool = False,
        class_names: Derived[Sequence[str] | None] = None,
    ) -> None:
        if not parts or any(isinstance(part, MixedDataset) for part in parts):
            raise UserError("expected a list of datasets that are not MixedDataset themselves", key="parts")
        self.parts, self.file, self.images = list(parts), " + ".join(part.file for part in parts), Path()
        self._starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        self._images_per_epoch = _images_per_epoch(parts, [1.0] * len(parts) if ratios is None else ratios)
        renumbered = self._join()
        self._choose_classes(class_names, drop_empty_classes)
        own = self.problems + renumbered
        self._report_missing_classes()
        self.problems = [problem for part in parts for problem in part.problems] + own

    @property
    def problem_messages(self) -> list[str]:
        """Return one line for each problem, beginning with the annotation file of its part."""
        files = {id(problem): part.file for part in self.parts for problem in part.problems}
        return [f"{files.get(id(problem), self.file)}: {problem}" for problem in self.problems]

    @property
    def epoch_length(self) -> int:
        """Return the number of images in an epoch, with repetitions."""
        return sum(self._images_per_epoch)

    def draw_epoch(self, rng: np.random.Generator) -> np.ndarray:
        """See `CocoDataset.draw_epoch`."""
        draws = []
        for start, part, image_count in zip(self._starts, self.parts, self._images_per_epoch, strict=True):
            times, remainder = divmod(image_count, len(part))
            all_images = [np.arange(len(part)) + copy * len(self) for copy in range(times)]
            subset = rng.permutation(len(part))[:remainder] + times * len(self)
            draws += [start + images for images in (*all_images, subset)]
        return rng.permutation(np.concatenate(draws))

    def load(self, index: int) -> np.ndarray:
        """Return RGB uint8 [H, W, 3]. Raises the UserError of the part, with the image id that it has there."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.parts[number].load(int(index - self._starts[number]))

    def check_images(self, strict: bool = True) -> None:
        """See `CocoDataset.check_images`."""
        for part in self.parts:
            old_count = len(part.problems)
            part.check_images(strict)
            self.problems = self.problems + part.problems[old_count:]
        self.sizes = np.concatenate([part.sizes for part in self.parts])

    def _join(self) -> list[Problem]:
        """Concatenate the images and objects of the parts, merge their classes; return the problem of shared ids."""
        parts, self.problems = self.parts, []
        ids = np.concatenate([part.image_ids for part in parts])
        self.image_ids, self.sizes = ids, np.concatenate([part.sizes for part in parts])
        self._file_names = [str(part.images / name) for part in parts for name in part._file_names]
        self._offsets = np.cumsum([0, *np.concatenate([part.object_counts for part in parts])])
        self._xywh, self._areas, self._is_crowd = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("_xywh", "_areas", "_is_crowd")
        )
        merged: dict[str, int] = {}  # name -> category id
        for part in parts:
            part.problems = part.problems + self._merge(part, merged)
        self.class_names, self.category_ids = list(merged), np.array(list(merged.values()), np.int64)
        class_of = {name: k for k, name in enumerate(merged)}
        classes = [np.array([class_of[name] for name in part.class_names])[part._classes] for part in parts]
        self._classes = np.concatenate(classes).astype(np.int32)
        unique, counts = np.unique(ids, return_counts=True)
        shared = np.flatnonzero(np.isin(ids, unique[counts > 1]))
        problems = self._problems("image_id_shared", shared)
        if len(shared):
            self.image_ids = np.arange(1, len(ids) + 1)
        return problems

    def _merge(self, part: CocoDataset, merged: dict[str, int]) -> list[Problem]:
        """Add the classes of a part and their category ids to the merged ones; return the problem of ids in use."""
        free = 1 + max(int(other.category_ids.max()) for other in self.parts)
        taken = []
        for k, (name, category_id) in enumerate(zip(part.class_names, part.category_ids.tolist(), strict=True)):
            if name not in merged:
                if category_id in merged.values():
                    taken.append(k)
                    category_id = max(free, 1 + max(merged.values()))
                merged[name] = category_id
        return problems_at(
            "category_id_taken",
            taken,
            part.num_classes,
            lambda k: Example(category=int(part.category_ids[k]), value=part.class_names[k]),
        )

    def _choose_classes(self, wanted: Sequence[str] | None, drop_empty: bool) -> None:
        """Leave out classes with their objects, as `CocoDataset` does, and reorder the others as in `wanted`."""
        names, count = self.class_names, self.num_classes
        boxes = np.bincount(self._classes[~self._is_crowd], minlength=count)
        used = np.bincount(self._classes, minlength=count) > 0
        chosen, problems = choose_classes(
            names, self.category_ids.tolist(), boxes, used, self.file, class_names=wanted, drop_empty=drop_empty
        )
        class_of = np.full(count, -1, np.int32)
        class_of[chosen] = np.arange(len(chosen))
        self._classes = class_of[self._classes]
        left_out = self._classes < 0
        owners = self._object_images

        def example(row: int) -> Example:
            return Example(image=int(self.image_ids[owners[row]]), file=self._file_names[owners[row]])

        self.problems = self.problems + problems + problems_at("class_left_out", left_out, len(left_out), example)
        self._offsets = np.cumsum([0, *np.bincount(owners[~left_out], minlength=len(self))])
        self._classes, self._xywh, self._areas, self._is_crowd = (
            column[~left_out] for column in (self._classes, self._xywh, self._areas, self._is_crowd)
        )
        self.class_names, self.category_ids = [names[k] for k in chosen], self.category_ids[chosen]

    def _report_missing_classes(self) -> None:
        """Add a problem to each part that lacks some of the classes."""
        for part in self.parts:
            missing = [k for k, name in enumerate(self.class_names) if name not in part.class_names]
            part.problems = part.problems + problems_at(
                "class_not_here",
                missing,
                self.num_classes,
                lambda k: Example(category=int(self.category_ids[k]), value=self.class_names[k]),
            )


def _images_per_epoch(parts: Sequence[CocoDataset], ratios: Sequence[float]) -> list[int]:
    """Return the number of images that an epoch takes from each part, with repetitions."""
    if len(ratios) != len(parts):
        raise UserError(f"expected one number for each of the {len(parts)} parts, got {len(ratios)}", key="ratios")
    counts = [int(ratio * len(part) + 0.5) for ratio, part in zip(ratios, parts, strict=True)]
    if 0 in counts:
        i = counts.index(0)
        raise UserError(
            f"ratio {ratios[i]:g} takes none of the {len(parts[i])} images of {parts[i].file}; "
            f"make it {1 / len(parts[i]):.3g} or more, or leave that part out",
            key="ratios",
        )
    return counts
