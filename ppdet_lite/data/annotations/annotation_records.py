"""Decodes the annotations of a COCO file by their types and packs them into arrays.

An annotation that follows the format becomes an `AnnotationRecord`, which is fast and small. `separate` returns the
others as dictionaries, which `repair` reads one by one.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np

from ppdet_lite.data.annotations.coco_content import Annotations
from ppdet_lite.data.annotations.lenient_values import is_flag_set, is_rotated


class AnnotationRecord(msgspec.Struct, gc=False):
    """An annotation of a file that follows the format. Other keys, such as the segmentation, are skipped."""

    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    iscrowd: Literal[0, 1] | None = None
    id: int | None = None
    ignore: Any = None
    attributes: Any = None


_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63) + 1, le=2**63 - 1)]
_Number = Annotated[float, msgspec.Meta(gt=-(2.0**63), lt=2.0**63)]


class _BoundedRecord(AnnotationRecord, gc=False):
    """An annotation whose numbers are also within the limits of `lenient_values`."""

    image_id: _Int64
    category_id: _Int64
    bbox: tuple[_Number, _Number, _Number, _Number]
    area: _Number | None = None


_DECODER = msgspec.json.Decoder(_BoundedRecord)
_PLACEHOLDER = AnnotationRecord(0, 0, (0.0, 0.0, 0.0, 0.0))


class SeparatedAnnotations(NamedTuple):
    """The annotations of a file in its order, those that deviate from the format apart."""

    records: list[AnnotationRecord]  # [A]; a placeholder for each annotation in `others`
    others: dict[int, Any]  # row -> the annotation as parsed by `json`, in ascending order of rows


def separate_encoded(items: Sequence[msgspec.Raw], parse: Callable[[bytes], Any]) -> SeparatedAnnotations:
    """Decode annotations that are still JSON; those that deviate from the format are parsed by `parse`."""
    return _separate(items, _DECODER.decode, lambda item: parse(bytes(item)))


def separate(items: Sequence[dict]) -> SeparatedAnnotations:
    """Convert parsed annotations; those that deviate from the format are returned as they are."""
    return _separate(items, lambda item: msgspec.convert(item, _BoundedRecord), lambda item: item)


def _separate(
    items: Sequence[Any], decode: Callable[[Any], AnnotationRecord], parse: Callable[[Any], Any]
) -> SeparatedAnnotations:
    records, others = [], {}
    for row, item in enumerate(items):
        try:
            records.append(decode(item))
        except msgspec.DecodeError:
            records.append(_PLACEHOLDER)
            others[row] = parse(item)
    return SeparatedAnnotations(records, others)


def pack(records: Sequence[AnnotationRecord]) -> Annotations:
    """Pack records into arrays. Raises OverflowError if an id does not fit into 64 bits."""
    count = len(records)
    coordinates = np.fromiter((number for record in records for number in record.bbox), np.float64, 4 * count)
    return Annotations(
        ids=[record.id for record in records],
        image_ids=np.fromiter((record.image_id for record in records), np.int64, count),
        category_ids=np.fromiter((record.category_id for record in records), np.int64, count),
        xywh=coordinates.reshape(-1, 4),
        areas=np.fromiter((np.nan if record.area is None else record.area for record in records), np.float64, count),
        is_crowd=np.fromiter((record.iscrowd == 1 for record in records), bool, count),
        has_crowd_flag=np.fromiter((record.iscrowd is not None for record in records), bool, count),
        has_ignore_flag=np.fromiter((is_flag_set(record.ignore) for record in records), bool, count),
        is_rotated=np.fromiter((is_rotated(record.attributes) for record in records), bool, count),
    )
