"""Reads a COCO annotation file into a few arrays, with a fast path for files that follow the format exactly.

The fast path decodes the file into typed records and skips all other keys (such as segmentations, nine tenths of COCO's
own files). If anything deviates from the format, `repair` reads the file again: it checks images, categories and the
annotations that deviate one by one, and repairs each deviation or reports where it is.
"""

import mmap
from pathlib import Path

import msgspec
import numpy as np

from ppdet_lite.data.annotations.annotation_records import AnnotationRecord, pack
from ppdet_lite.data.annotations.coco_content import CocoFile
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


class _Content(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[AnnotationRecord]


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
    images = content.images
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
    return CocoFile(
        class_names=names,
        category_ids=category_ids,
        image_ids=image_ids,
        sizes=sizes.astype(np.int32),
        file_names=[image.file_name for image in images],
        annotations=pack(content.annotations),
        problems=[],
    )
