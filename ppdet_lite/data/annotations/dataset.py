"""The COCO detection dataset: one JSON file of annotations and a folder of images.

The annotations are stored in a few packed arrays, without a Python object per annotation, so memory stays low and
loader threads share it. Image files are opened by `load` and `check_images`, and while the annotations are read where
those give no size or appear to swap width and height.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.coco_file import read_coco
from ppdet_lite.data.annotations.objects import box_extents, clipped_corners, pack_objects
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at, raise_if_refused
from ppdet_lite.data.annotations.statistics import Statistics, count
from ppdet_lite.data.images import sizes
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.sizes import ROUNDING

# Number of image headers that `check_images` compares with the annotations; if one differs, it compares all.
SAMPLED_HEADERS = 500


class ImageInfo(NamedTuple):
    """An image as described by the annotation file."""

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
    drop_empty_classes: leave out classes without boxes; if class_names is given, leave out the categories that are not
        in it, with their boxes. A category that is not in class_names and has no annotations is always left out.
    class_names: the classes in the order of the training set or a checkpoint. The file's categories are matched to
        them by name; their ids do not matter. Without it, class k is the k-th category in the order of ids.

    `problems` lists everything that was repaired or left out; `problem_messages` has one line for each.
    Raises UserError with the file's path if a file is missing, not COCO or inconsistent; the subclass DatasetError
    if the faulty records can be counted.
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
        content = read_coco(self.file, self.images)
        if not self.images.is_dir():
            raise UserError(f"image folder {images} (for {annotations}) does not exist; correct `images`", key="images")
        names, renamed = sizes.replace_backslashes(self.images, content.file_names)
        self.image_ids, self.sizes, self._file_names = content.image_ids, content.sizes, names
        self.problems = content.problems + self._problems(
            "file_name_backslash", renamed, lambda row: {"file_name": content.file_names[row]}
        )
        self.problems += self._problems("file_twice", _repeated_rows(names))
        extents = box_extents(content.annotations.xywh, content.annotations.image_ids, self.image_ids)
        swapped = (extents > self.sizes + ROUNDING).any(1) & (extents <= self.sizes[:, ::-1] + ROUNDING).all(1)
        self._correct_sizes(np.flatnonzero(swapped | (self.sizes <= 0).any(1)), extents)
        objects = pack_objects(content, self.file, self.sizes, names, class_names, keep_empty, drop_empty_classes)
        self.problems += objects.problems
        self.class_names, self.category_ids = objects.class_names, objects.category_ids
        self.image_ids, self.sizes = self.image_ids[objects.images], self.sizes[objects.images]
        self._file_names = [names[i] for i in objects.images.tolist()]
        self._offsets, self._classes, self._xywh = objects.offsets, objects.classes, objects.xywh
        self._areas, self._is_crowd = objects.areas, objects.is_crowd

    @property
    def num_classes(self) -> int:
        """Return K, the number of classes without background."""
        return len(self.class_names)

    @property
    def object_counts(self) -> np.ndarray:
        """Return the number of objects of each image, crowd regions included, as [len(self)]."""
        return np.diff(self._offsets)

    @property
    def _object_images(self) -> np.ndarray:
        """The index of each object's image."""
        return np.repeat(np.arange(len(self)), self.object_counts)

    @property
    def problem_messages(self) -> list[str]:
        """Return one line for each problem, beginning with the annotation file."""
        return [f"{self.file}: {problem}" for problem in self.problems]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def epoch_length(self) -> int:
        """Return the number of images in an epoch of training."""
        return len(self)

    def draw_epoch(self, rng: np.random.Generator) -> np.ndarray:
        """Return the draws [epoch_length] of an epoch in random order.

        A draw is index + len(self) * r for the r-th repetition of that image in the epoch, counted from 0.
        """
        return rng.permutation(len(self))

    def info(self, index: int) -> ImageInfo:
        """Return the id, path, height and width of an image as annotated."""
        height, width = self.sizes[index].tolist()
        return ImageInfo(int(self.image_ids[index]), str(self.images / self._file_names[index]), height, width)

    def annotations(self, index: int) -> Objects:
        """Return the boxes, classes and crowd flags of an image, in pixels of the original image."""
        rows = slice(self._offsets[index], self._offsets[index + 1])
        boxes = clipped_corners(self._xywh[rows], self.sizes[index])
        return Objects(boxes, self._classes[rows].astype(np.int64), self._is_crowd[rows].copy())

    def statistics(self) -> Statistics:
        """Count the images, and the objects by class and size."""
        per_image = np.bincount(self._object_images[~self._is_crowd], minlength=len(self))
        return count(self._classes, self._areas, self._is_crowd, per_image, self.num_classes)

    def object_areas(self) -> np.ndarray:
        """Return the annotated areas of all objects without crowd regions."""
        return self._areas[~self._is_crowd]

    def largest_class_counts(self) -> np.ndarray:
        """Return the number of objects in each image of the class that has most there, without crowd regions."""
        pairs = (self._object_images * self.num_classes + self._classes)[~self._is_crowd]
        pairs, counts = np.unique(pairs, return_counts=True)
        result = np.zeros(len(self), int)
        np.maximum.at(result, pairs // self.num_classes, counts)
        return result

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
            swapped = (width, height) == (info.height, info.width)
            raise UserError(
                f"{info.path} is {width}x{height} (width x height), but image id {info.id} in {self.file} has "
                f"{info.width}x{info.height}{'; was it annotated without its EXIF rotation?' if swapped else ''}"
            )
        return image

    def ground_truth(self) -> dict[str, Any]:
        """Build the dictionary that pycocotools takes as `COCO().dataset`.

        Boxes (xywh) and areas are those of the file, unclipped, so that AP is the official one. Missing area and
        iscrowd are filled in. Annotation ids count from 1, since pycocotools uses the id 0 for "unmatched".
        """
        image_ids = self.image_ids[self._object_images]
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
        """Check that all image files exist, and that a sample of them has the annotated sizes.

        Corrects swapped widths and heights. Raises DatasetError if files are missing or have other sizes; with
        strict=False these are only added to `problems`, and `load` raises an error for each such image.
        """
        absent = sizes.missing_files(self.images, self._file_names)
        self._add_problems(self._problems("file_missing", absent, self._searched_paths), strict)
        extents = box_extents(self._xywh, self.image_ids[self._object_images], self.image_ids)
        sample = np.unique(np.linspace(0, len(self) - 1, SAMPLED_HEADERS).astype(int))
        if self._compare_sizes(sample, extents)[1]:
            self._correct_sizes(np.arange(len(self)), extents, strict)

    def _compare_sizes(self, rows: np.ndarray, extents: np.ndarray) -> tuple[np.ndarray, dict[str, list[int]]]:
        paths = [self.images / self._file_names[row] for row in rows.tolist()]
        return sizes.compare_sizes(paths, self.sizes[rows], extents[rows])

    def _correct_sizes(self, rows: np.ndarray, extents: np.ndarray, strict: bool = True) -> None:
        """Compare the sizes of images with their files, and replace those that are missing or swapped."""
        annotated, (actual, kinds) = self.sizes, self._compare_sizes(rows, extents)

        def both_sizes(row: int) -> dict[str, Any]:
            (height, width), (h, w) = annotated[row].tolist(), actual[np.searchsorted(rows, row)].tolist()
            return {"width": width, "height": height, "file": f"{w}x{h}" if w else None}

        found = [self._problems(kind, rows[indices], both_sizes) for kind, indices in kinds.items()]
        self._add_problems([problem for problems in found for problem in problems], strict)
        self.sizes = annotated.copy()
        for kind in sizes.CORRECTED & kinds.keys():
            self.sizes[rows[kinds[kind]]] = actual[kinds[kind]]

    def _add_problems(self, problems: list[Problem], strict: bool) -> None:
        self.problems = self.problems + problems
        if strict:
            raise_if_refused(self.file, self.problems)

    def _problems(self, kind: str, rows: Any, value: Callable[[int], Any] = lambda row: None) -> list[Problem]:
        """Return the problem of a kind that the images at `rows` have, in a list that is empty without rows."""
        ids, names = self.image_ids, self._file_names
        return problems_at(kind, rows, len(ids), lambda i: Example(image=int(ids[i]), file=names[i], value=value(i)))

    def _searched_paths(self, row: int) -> dict[str, str]:
        return sizes.searched_paths(self.images, self._file_names[row])


def _repeated_rows(names: Sequence[str]) -> list[int]:
    """Return the rows whose name an earlier row has."""
    first: dict[str, int] = {}
    return [row for row, name in enumerate(names) if first.setdefault(name, row) != row]
