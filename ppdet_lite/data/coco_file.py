"""A COCO annotation file as a few arrays, read as fast as a file without faults allows.

What fits the format exactly is decoded by its types, and everything else in it (segmentations, nine tenths of COCO's
own files) is passed over. Any fault, and the file is read again object by object, to tell where it is.
"""

import json
import mmap
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ppdet_lite.core.errors import UserError


class Annotations(NamedTuple):
    """The objects of a file, A of them, in its order."""

    ids: Sequence[Any]  # as the file has them
    image_ids: np.ndarray  # [A] int64
    category_ids: np.ndarray  # [A] int64
    xywh: np.ndarray  # [A, 4] float64; NaN where it is not a number
    areas: np.ndarray  # [A] float64; NaN where there is none
    is_crowd: np.ndarray  # [A] bool
    without_crowd: int  # how many do not say whether they are
    without_area: int


class CocoFile(NamedTuple):
    """The content of an annotation file; images are in its order, categories in the order of their ids."""

    class_names: list[str]
    category_ids: list[int]
    image_ids: np.ndarray  # [images] int64, unique
    sizes: np.ndarray  # [images, 2] int32 (h, w), positive
    file_names: list[str]
    annotations: Annotations


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
    iscrowd: bool | int | msgspec.UnsetType | None = msgspec.UNSET
    id: int | None = None


class _Content(msgspec.Struct):
    images: list[_Image]
    categories: list[_Category]
    annotations: list[_Annotation]


_DECODER = msgspec.json.Decoder(_Content)


def read_coco(path: str) -> CocoFile:
    """Read an annotation file. Raises UserError, naming file and record, for whatever is missing or not COCO."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _typed(_DECODER.decode(content))
    except (
        msgspec.DecodeError,
        OverflowError,
        ValueError,
        OSError,
        UserError,
    ):  # UserError: of `_checked`, without place
        return _told(path)


def read_categories(path: str) -> tuple[list[str], list[int]]:
    """Class names and category ids of an annotation file, in the order of ids. Raises UserError as `read_coco`."""
    records = _read_json(path)["categories"]
    ids = _integers(records, "id", f"{path}: category").tolist()
    return _ordered(path, ids, [record.get("name") for record in records])


def _typed(content: _Content) -> CocoFile:
    images, categories, records = content.images, content.categories, content.annotations
    if not images or not categories:
        raise ValueError("empty")
    count = len(records)
    return _checked(
        "",
        [category.id for category in categories],
        [category.name for category in categories],
        np.fromiter((image.id for image in images), np.int64, len(images)),
        np.array([(image.height, image.width) for image in images], np.int64),
        [image.file_name for image in images],
        Annotations(
            [record.id for record in records],
            np.fromiter((record.image_id for record in records), np.int64, count),
            np.fromiter((record.category_id for record in records), np.int64, count),
            np.fromiter((number for record in records for number in record.bbox), np.float64, 4 * count).reshape(-1, 4),
            np.fromiter((np.nan if record.area is None else record.area for record in records), np.float64, count),
            np.fromiter(
                (record.iscrowd is not msgspec.UNSET and bool(record.iscrowd) for record in records), bool, count
            ),
            sum(record.iscrowd is msgspec.UNSET for record in records),
            sum(record.area is None for record in records),
        ),
    )


def _told(path: str) -> CocoFile:
    """The same with every number looked at, so that what is wrong has a place."""
    content = _read_json(path)
    images, records, where = content["images"], content["annotations"], f"{path}: annotation"
    return _checked(
        path,
        _integers(content["categories"], "id", f"{path}: category").tolist(),
        [record.get("name") for record in content["categories"]],
        _integers(images, "id", f"{path}: image"),
        np.stack([_integers(images, key, f"{path}: image") for key in ("height", "width")], 1),
        [record.get("file_name") for record in images],
        Annotations(
            [record.get("id") for record in records],
            _integers(records, "image_id", where),
            _integers(records, "category_id", where),
            _floats([record.get("bbox") for record in records], (len(records), 4), f"{where} bbox"),
            _floats([record.get("area") for record in records], (len(records),), f"{where} area"),
            np.array([bool(record.get("iscrowd")) for record in records], bool),
            sum("iscrowd" not in record for record in records),
            sum(record.get("area") is None for record in records),
        ),
    )


def _checked(
    path: str,
    category_ids: list[int],
    names: list[Any],
    image_ids: np.ndarray,
    sizes: np.ndarray,
    file_names: list[Any],
    annotations: Annotations,
) -> CocoFile:
    """The content, its categories in order, its images with unique ids, names and sizes."""
    where = f"{path}: image"
    names, category_ids = _ordered(path, category_ids, names)
    _unique(image_ids.tolist(), f"{where} id")
    for image_id, (height, width), name in zip(image_ids.tolist(), sizes.tolist(), file_names, strict=True):
        if min(height, width) <= 0:
            raise UserError(f"{where} {image_id} has height {height} and width {width}")
        if not isinstance(name, str) or not name:
            raise UserError(f"{where} {image_id} has no file_name")
    return CocoFile(names, category_ids, image_ids, sizes.astype(np.int32), file_names, annotations)


def _ordered(path: str, category_ids: list[int], names: list[Any]) -> tuple[list[str], list[int]]:
    """Names and ids of categories in the order of the ids; both are unique."""
    _unique(category_ids, f"{path}: category id")
    order = sorted(range(len(category_ids)), key=category_ids.__getitem__)
    names, category_ids = [names[i] for i in order], [category_ids[i] for i in order]
    for category, name in zip(category_ids, names, strict=True):
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: category {category} has no name")
    _unique(names, f"{path}: category name")
    return names, category_ids


def _read_json(path: str) -> dict[str, list[dict]]:
    """Return the content of a COCO file without its segmentations."""

    def forget_masks(record: dict) -> dict:
        record.pop("segmentation", None)  # nine tenths of the memory, dropped object by object
        return record

    try:
        with open(path, encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=forget_masks)
    except OSError as error:
        raise UserError(f"cannot read annotations {path}: {error.strerror}; see dataset/README.md") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"annotations {path} are not JSON: {error}") from None
    for key in ("images", "annotations", "categories"):
        records = content.get(key) if isinstance(content, dict) else None
        if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
            raise UserError(f"{path} is not a COCO detection file: it has no list of {key}")
        if not records and key != "annotations":
            raise UserError(f"{path} is not a COCO detection file: its list of {key} is empty")
    return content


def _integers(records: list[dict], key: str, where: str) -> np.ndarray:
    """Return [records] int64 values of a key, or raise UserError for the first that is not a whole number."""
    values = [record.get(key) for record in records]
    for number, value in enumerate(values):
        if type(value) is not int or value.bit_length() > 63:  # bool is no number here
            found = f"{value!r}" if key in records[number] else "nothing"
            raise UserError(f"{where} no. {number + 1}: a whole number is expected as {key}, found {found}")
    return np.array(values, np.int64)


def _floats(values: list, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Return float64 values in a shape; None becomes NaN."""
    try:
        return np.array(values, np.float64).reshape(shape)
    except (ValueError, TypeError):
        raise UserError(f"{where}: {'four numbers' if len(shape) > 1 else 'a number'} expected everywhere") from None


def _unique(values: Sequence, what: str) -> None:
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise UserError(f"{what} {value} occurs {count} times")
