"""Detection data in COCO format: one JSON file of annotations and a folder of images.

The annotations become a few packed arrays as soon as they are read; nothing per annotation stays behind as a Python
object, so memory stays flat and loader threads share it. Image files are touched only when they are loaded.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.coco_file import Annotations, CocoFile, read_coco

MIN_SIDE = 1e-3  # pixels; a box that is narrower or lower inside its image has nothing to learn from


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
    class_names: the classes in the order of the training set or a checkpoint; the file's categories are matched to
        them by name, whatever their ids. Without it class k is the k-th category in the order of ids.

    `notes` has one line for everything that was mended or left out.
    Raises UserError, naming the file, for whatever is missing, not COCO or inconsistent.
    """

    class_names: list[str]  # [K]
    category_ids: np.ndarray  # [K] int64, class -> COCO category id
    image_ids: np.ndarray  # [images] int64
    sizes: np.ndarray  # [images, 2] int32 (h, w)
    notes: list[str]

    def __init__(
        self,
        images: str,
        annotations: str,
        keep_empty: bool = True,
        class_names: Derived[Sequence[str] | None] = None,
    ) -> None:
        self.images, self.file, self.notes = Path(images), str(annotations), []
        content = read_coco(self.file)
        if not self.images.is_dir():
            raise UserError(f"image folder {images} (for {annotations}) does not exist; correct `images`")
        self._take_categories(content, class_names)
        self.image_ids, self.sizes, self._file_names = content.image_ids, content.sizes, content.file_names
        self._take_annotations(content.annotations, keep_empty)

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return len(self.class_names)

    @property
    def object_counts(self) -> np.ndarray:
        """[len(self)] how many objects an image has, crowds included."""
        return np.diff(self._offsets)

    def __len__(self) -> int:
        return len(self.image_ids)

    def info(self, index: int) -> ImageInfo:
        """Return id, path, height and width of an image as annotated."""
        height, width = self.sizes[index].tolist()
        return ImageInfo(int(self.image_ids[index]), str(self.images / self._file_names[index]), height, width)

    def annotations(self, index: int) -> Objects:
        """Return the boxes, classes and crowd flags of an image, in original pixels."""
        rows = slice(self._offsets[index], self._offsets[index + 1])
        boxes = _clipped_corners(self._xywh[rows], self.sizes[index])
        return Objects(boxes, self._classes[rows].astype(np.int64), self._is_crowd[rows].copy())

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

    def _take_categories(self, content: CocoFile, class_names: Sequence[str] | None) -> None:
        self.class_names, self.category_ids = content.class_names, np.array(content.category_ids, np.int64)
        if class_names is not None:
            extra, missing = set(self.class_names) - set(class_names), set(class_names) - set(self.class_names)
            if extra or missing:
                raise UserError(
                    f"the classes of {self.file} are not those of the model or training set; "
                    f"only in the file: {_listed(extra)}; missing in the file: {_listed(missing)}"
                )
            self.category_ids = self.category_ids[[self.class_names.index(name) for name in class_names]]
            self.class_names = list(class_names)

    def _take_annotations(self, records: Annotations, keep_empty: bool) -> None:
        where = f"{self.file}: annotation"
        image = _index(records.image_ids, self.image_ids, f"{where} of unknown image")
        classes = _index(records.category_ids, self.category_ids, f"{where} of unknown category")
        xywh, areas, is_crowd = records.xywh, records.areas, records.is_crowd
        with np.errstate(invalid="ignore"):  # NaN and infinity are sorted out below
            right_bottom = xywh[:, :2] + xywh[:, 2:]
            areas = np.where(np.isfinite(areas), areas, xywh[:, 2] * xywh[:, 3])
            corners = _clipped_corners(xywh, self.sizes[image])
            good = np.isfinite(xywh).all(1) & (corners[:, 2:] - corners[:, :2] >= MIN_SIDE).all(1)
            beyond = (xywh[:, :2] < -0.5) | (right_bottom > self.sizes[image, ::-1] + 0.5)  # not mere rounding

        objects = np.bincount(image[good & ~is_crowd], minlength=len(self))
        self._report(records, good, good & beyond.any(1))
        self._note(np.sum(objects == 0), f"images without objects, {'kept' if keep_empty else 'left out'} (keep_empty)")
        if not keep_empty:
            kept = objects > 0
            good &= kept[image]
            image = (np.cumsum(kept) - 1)[image]
            self.image_ids, self.sizes = self.image_ids[kept], self.sizes[kept]
            self._file_names = [name for name, keep in zip(self._file_names, kept, strict=True) if keep]
            if not len(self):
                raise UserError(f"{self.file}: no image has an object, and keep_empty is false")

        order = np.argsort(image, kind="stable")
        order = order[good[order]]
        self._offsets = np.concatenate([[0], np.cumsum(np.bincount(image[order], minlength=len(self)))])
        self._classes, self._xywh, self._areas = classes[order].astype(np.int32), xywh[order], areas[order]
        self._is_crowd = is_crowd[order]

    def _report(self, records: Annotations, good: np.ndarray, outside: np.ndarray) -> None:
        ids = list(map(str, records.ids))
        first = f", the first is annotation {ids[int(np.argmin(good))]}" if not good.all() else ""
        self._note(np.sum(~good), f"boxes without a finite area inside their image, dropped{first}")
        self._note(np.sum(outside), "boxes that reach beyond their image, clipped")
        self._note(records.without_crowd, "annotations without iscrowd, taken as 0")
        self._note(records.without_area, "annotations without area, taken as w * h")
        self._note(len(ids) - len(set(ids) - {"0", "None"}), "annotation ids missing, 0 or repeated, renumbered")

    def _note(self, count: int, what: str) -> None:
        if count:
            self.notes.append(f"{self.file}: {count} {what}")


def load_image(path: str) -> np.ndarray:
    """Read an image file as RGB uint8 [H, W, 3], turned as its EXIF orientation says.

    Raises UserError if it is missing, truncated or cannot be decoded.
    """
    try:
        data = np.fromfile(path, np.uint8)  # unlike cv2.imread, at home with every path on every system
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror or error}") from None
    content = data.tobytes()
    if content.startswith(b"\xff\xd8") and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda"):
        raise UserError(f"image {path} is a truncated JPEG (no end marker)")  # OpenCV 4 would fill the rest with grey
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise UserError(f"image {path} cannot be decoded ({len(data)} bytes); it is damaged or not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _index(values: np.ndarray, ids: np.ndarray, where: str) -> np.ndarray:
    """Return the position of each value among unique ids, or raise UserError for the first unknown one."""
    order = np.argsort(ids)
    place = np.searchsorted(ids[order], values).clip(max=len(ids) - 1)
    unknown = ids[order[place]] != values
    if unknown.any():
        raise UserError(f"{where} {values[np.argmax(unknown)]} ({np.sum(unknown)} such annotations)")
    return order[place]


def _clipped_corners(xywh: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Turn [G, 4] xywh into float32 xyxy inside images of size (h, w), [2] or [G, 2]."""
    limit = np.concatenate([size[..., ::-1], size[..., ::-1]], axis=-1)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return np.clip(corners, 0, limit).astype(np.float32)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"
