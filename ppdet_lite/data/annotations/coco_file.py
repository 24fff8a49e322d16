"""Reads a COCO annotation file into a few arrays, with a fast path for files that follow the format exactly.

The fast path decodes the file into typed records and skips all other keys (such as segmentations, nine tenths of COCO's
own files). If anything deviates from the format, `repair` reads the file again record by record, and repairs each
deviation or reports where it is.
"""

import mmap
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ppdet_lite.data.annotations.coco_content import Annotations, CocoFile
from ppdet_lite.data.annotations.lenient_values import is_flag_set, is_rotated
from ppdet_lite.data.annotations.repair import read_categories, read_with_repairs

__all__ = ["read_categories", "read_coco"]


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int
    width: int


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: Literal[0, 1] | None = None
    id: int | None = None
    ignore: Any = None
    attributes: Any = None


class _Content(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


_DECODER = msgspec.json.Decoder(_Content)


def read_coco(path: str, images: Path | None = None) -> CocoFile:
    """Read an annotation file. Raises UserError with the file and record if it is missing or is not valid COCO.

    images: the image folder, for the message on a file in another format.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            result = _to_arrays(_DECODER.decode(content))
    except (msgspec.DecodeError, OverflowError, ValueError, OSError):
        result = None
    return read_with_repairs(path, images) if result is None else result


def _to_arrays(content: _Content) -> CocoFile | None:
    """Convert the content to arrays; return None if something in it has to be repaired or reported."""
    images, records, count = content.images, content.annotations, len(content.annotations)
    categories = sorted(content.categories, key=lambda category: category.id)
    names = [category.name for category in categories]
    category_ids = np.fromiter((category.id for category in categories), np.int64, len(categories)).tolist()
    image_ids = np.fromiter((image.id for image in images), np.int64, len(images))
    sizes = np.array([(image.height, image.width) for image in images], np.int64)
    if not (
        images
        and categories
        and len(np.unique(image_ids)) == len(images)
        and len(set(category_ids)) == len(set(names)) == len(names)
        and all(name and name == name.strip() and name.isprintable() for name in names)
        and all(image.file_name.isprintable() and image.file_name.strip() for image in images)
        and sizes.min() > 0
        and sizes.max() <= np.iinfo(np.int32).max
    ):
        return None
    annotations = Annotations(
        [record.id for record in records],
        np.fromiter((record.image_id for record in records), np.int64, count),
        np.fromiter((record.category_id for record in records), np.int64, count),
        np.fromiter((number for record in records for number in record.bbox), np.float64, 4 * count).reshape(-1, 4),
        np.fromiter((np.nan if record.area is None else record.area for record in records), np.float64, count),
        np.fromiter((record.iscrowd == 1 for record in records), bool, count),
        np.fromiter((record.iscrowd is not None for record in records), bool, count),
        np.fromiter((is_flag_set(record.ignore) for record in records), bool, count),
        np.fromiter((is_rotated(record.attributes) for record in records), bool, count),
    )
    file_names = [image.file_name for image in images]
    return CocoFile(names, category_ids, image_ids, sizes.astype(np.int32), file_names, annotations, [])
