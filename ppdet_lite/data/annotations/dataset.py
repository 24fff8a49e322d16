"""Detection data in COCO format: one JSON file of annotations and a folder of images.

The annotations become a few packed arrays as soon as they are read; nothing per annotation stays behind as a Python
object, so memory stays flat and loader threads share it. Image files are touched when they are loaded, in
`check_images`, and where the annotations leave a size open or have it the wrong way round.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.coco_file import read_coco
from ppdet_lite.data.annotations.objects import clipped_corners, extents, pack
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at, refuse
from ppdet_lite.data.annotations.statistics import Statistics, count
from ppdet_lite.data.images import sizes
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.sizes import ROUNDING

SAMPLED = 500  # headers that `check_images` compares with the annotations; all of them once one differs


class ImageInfo(NamedTuple):
    """One image as the annotation file describes it."""

    id: int
    path: str
    height: int
    width: int


class Objects(NamedTuple):
    """The annotated objects of one image; G = 0 is legal."""

    boxes: np.ndarray  # [G, 4] float32 xyxy, original pixels, clipped to the image
    classes: np.ndarray  # [G] int64, 0..K-1
    is_crowd: np.ndarray  # [G] bool


@register
class CocoDataset:
    """A COCO detection dataset, checked while it is read.

    images: the folder that the `file_name` entries are relative to.
    annotations: the JSON file.
    keep_empty: keep images without objects (none at all, or crowd regions only) as pure background.
    drop_empty_classes: leave out classes without any box; with class_names, those that are not among them, and their
        boxes. One without boxes that class_names do not have is left out in any case.
    class_names: the classes in the order of the training set or a checkpoint; the file's categories are matched to
        them by name, whatever their ids. Without it class k is the k-th category in the order of ids.

    `problems` are all that was mended or left out; `notes` has a line for each.
    Raises UserError, naming the file, for whatever is missing, not COCO or inconsistent; Refused where it can be
    counted.
    """

    class_names: list[str]  # [K]
    category_ids: np.ndarray  # [K] int64, class -> COCO category id
    image_ids: np.ndarray  # [images] int64
    sizes: np.ndarray  # [images, 2] int32 (h, w)
    problems: list[Problem]

    def __init__(
        self,
        images: str,
        annotations: str,
        keep_empty: bool = True,
        drop_empty_classes: bool = False,
        class_names: Derived[Sequence[str] | None] = None,
    ) -> None:
        self.images, self.file = Path(images), str(annotations)
        content = read_coco(self.file)
        if not self.images.is_dir():
            raise UserError(f"image folder {images} (for {annotations}) does not exist; correct `images`", key="images")
        names, renamed = sizes.with_slashes(self.images, content.file_names)
        self.image_ids, self.sizes, self._file_names = content.image_ids, content.sizes, names
        self.problems = content.problems + self._problems(
            "file_name_backslash", renamed, lambda row: {"file_name": content.file_names[row]}
        )
        self.problems += self._problems("file_twice", _repeated(names))
        reach = extents(content.annotations.xywh, content.annotations.image_ids, self.image_ids)
        unlikely = (reach > self.sizes + ROUNDING).any(1) & (reach <= self.sizes[:, ::-1] + ROUNDING).all(1)
        self._settle_sizes(np.flatnonzero(unlikely | (self.sizes <= 0).any(1)), reach)
        objects = pack(content, self.file, self.sizes, names, class_names, keep_empty, drop_empty_classes)
        self.problems += objects.problems
        self.class_names, self.category_ids = objects.class_names, objects.category_ids
        self.image_ids, self.sizes = self.image_ids[objects.images], self.sizes[objects.images]
        self._file_names = [names[i] for i in objects.images.tolist()]
        self._offsets, self._classes, self._xywh = objects.offsets, objects.classes, objects.xywh
        self._areas, self._is_crowd = objects.areas, objects.is_crowd

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return len(self.class_names)

    @property
    def object_counts(self) -> np.ndarray:
        """[len(self)] how many objects an image has, crowds included."""
        return np.diff(self._offsets)

    @property
    def notes(self) -> list[str]:
        """A line for every problem."""
        return [f"{self.file}: {problem}" for problem in self.problems]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def epoch_length(self) -> int:
        """How many images an epoch of training has."""
        return len(self)

    def draw_epoch(self, rng: np.random.Generator) -> np.ndarray:
        """The draws [epoch_length] of an epoch, in random order: index + len(self) * how often it has come before."""
        return rng.permutation(len(self))

    def info(self, index: int) -> ImageInfo:
        """Return id, path, height and width of an image as annotated."""
        height, width = self.sizes[index].tolist()
        return ImageInfo(int(self.image_ids[index]), str(self.images / self._file_names[index]), height, width)

    def annotations(self, index: int) -> Objects:
        """Return the boxes, classes and crowd flags of an image, in original pixels."""
        rows = slice(self._offsets[index], self._offsets[index + 1])
        boxes = clipped_corners(self._xywh[rows], self.sizes[index])
        return Objects(boxes, self._classes[rows].astype(np.int64), self._is_crowd[rows].copy())

    def statistics(self) -> Statistics:
        """Count images and objects, by class and size."""
        owners = np.repeat(np.arange(len(self)), np.diff(self._offsets))
        per_image = np.bincount(owners[~self._is_crowd], minlength=len(self))
        return count(self._classes, self._areas, self._is_crowd, per_image, self.num_classes)

    def load(self, index: int) -> np.ndarray:
        """Return the pixels of an image, RGB uint8 [H, W, 3].

        Raises UserError with path and image id if the file is missing, damaged or not of the annotated size.
        """
        info = self.info(index)
        try:
            image = load_image(info.path)
        except UserError as error:
            raise UserError(f"{error} (image id {info.id} in {self.file})") from None
        height, width = image.shape[:2]
        if (height, width) != (info.height, info.width):
            turned = (width, height) == (info.height, info.width)
            raise UserError(
                f"{info.path} is {width}x{height} (width x height), but image id {info.id} in {self.file} says "
                f"{info.width}x{info.height}{'; was it annotated without its EXIF rotation?' if turned else ''}"
            )
        return image

    def ground_truth(self) -> dict[str, Any]:
        """Build what pycocotools takes as `COCO().dataset`, with the file's own numbers and no gaps.

        Boxes are xywh, unclipped, and areas as in the file, so that AP is the official one; area and iscrowd are
        always there; annotation ids count from 1, since pycocotools takes the id 0 for "unmatched".
        """
        image_ids = np.repeat(self.image_ids, np.diff(self._offsets))
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        columns = (image_ids, self.category_ids[self._classes], self._xywh, self._areas, self._is_crowd.astype(int))
        rows = zip(range(1, len(image_ids) + 1), *(column.tolist() for column in columns), strict=True)
        images = zip(self.image_ids.tolist(), self._file_names, self.sizes.tolist(), strict=True)
        categories = zip(self.category_ids.tolist(), self.class_names, strict=True)
        return {
            "images": [{"id": i, "file_name": name, "height": h, "width": w} for i, name, (h, w) in images],
            "categories": [{"id": i, "name": name} for i, name in categories],
            "annotations": [dict(zip(keys, row, strict=True)) for row in rows],
        }

    def check_images(self, strict: bool = True) -> None:
        """Look whether all image files are there, and whether those of a sample have the annotated sizes.

        Widths and heights that are swapped are mended. Raises Refused for files that are missing or of other sizes;
        not strict, they are only told, for loading to meet them.
        """
        absent = sizes.missing(self.images, self._file_names)
        self._tell(self._problems("file_missing", absent, self._tried), strict)
        reach = extents(self._xywh, np.repeat(self.image_ids, np.diff(self._offsets)), self.image_ids)
        sample = np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(int))
        if self._compare(sample, reach)[1]:
            self._settle_sizes(np.arange(len(self)), reach, strict)

    def _compare(self, rows: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, dict[str, list[int]]]:
        paths = [self.images / self._file_names[row] for row in rows.tolist()]
        return sizes.compare(paths, self.sizes[rows], reach[rows])

    def _settle_sizes(self, rows: np.ndarray, reach: np.ndarray, strict: bool = True) -> None:
        """Compare images with their files, and take sizes from there that are missing or swapped."""
        listed, (found, kinds) = self.sizes, self._compare(rows, reach)

        def differing(row: int) -> dict[str, Any]:
            (height, width), (h, w) = listed[row].tolist(), found[np.searchsorted(rows, row)].tolist()
            return {"width": width, "height": height, "file": f"{w}x{h}" if w else None}

        self._tell([each for kind, at in kinds.items() for each in self._problems(kind, rows[at], differing)], strict)
        self.sizes = listed.copy()
        for kind in sizes.MENDED & kinds.keys():
            self.sizes[rows[kinds[kind]]] = found[kinds[kind]]

    def _tell(self, problems: list[Problem], strict: bool) -> None:
        self.problems = self.problems + problems
        if strict:
            refuse(self.file, self.problems)

    def _problems(self, kind: str, rows: Any, value: Callable[[int], Any] = lambda row: None) -> list[Problem]:
        """The problem of some images."""
        ids, names = self.image_ids, self._file_names
        return problems_at(kind, rows, len(ids), lambda i: Example(image=int(ids[i]), file=names[i], value=value(i)))

    def _tried(self, row: int) -> dict[str, str]:
        path, other = self.images / self._file_names[row], sizes.elsewhere(self.images, self._file_names[row])
        return {"tried": str(path)} if other is None else {"tried": str(path), "it is at": other}


def _repeated(names: Sequence[str]) -> list[int]:
    """The places of names that were there before."""
    first: dict[str, int] = {}
    return [place for place, name in enumerate(names) if first.setdefault(name, place) != place]
