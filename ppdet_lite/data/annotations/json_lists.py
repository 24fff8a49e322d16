"""Reads the three lists of a COCO annotation file; the error for a file in another format names that format.

NaN and Infinity are not JSON, but Python writes them. msgspec rejects them, so they are replaced by numbers that only
`_parse_record` reads: an annotation with one is parsed by `json`, and the other annotations stay fast to read.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.annotation_records import SeparatedAnnotations, separate, separate_encoded
from ppdet_lite.data.annotations.other_formats import other_format
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at, raise_if_refused

LISTS = ("images", "annotations", "categories")
NAN = b"1e99999"  # stands for NaN; beyond the range of any number, so msgspec decodes no annotation that contains it
SHAPES = "dataset/shapes"  # the quickstart's dataset, which the command make-shapes writes
NUMBERS = {b"NaN": NAN, b"Infinity": b"1e9999"}  # the latter is infinite when parsed
_ESCAPE = re.compile(rb"\\.", re.DOTALL)


class Lists(NamedTuple):
    """The three lists of a file."""

    images: list[dict]
    categories: list[dict]
    annotations: SeparatedAnnotations


class _Encoded(msgspec.Struct):
    images: list[dict[str, Any]]
    categories: list[dict[str, Any]]
    annotations: list[msgspec.Raw]


_DECODER = msgspec.json.Decoder(_Encoded)


def read_lists(path: str, images: Path | None = None) -> tuple[Lists, list[Problem]]:
    """Read images, annotations and categories; segmentations are kept only for annotations without a bbox.

    Raises UserError if the file is not a COCO annotation file; images: the image folder, for the message.
    """
    if (other := other_format(Path(path), images)) is not None:
        raise UserError(f"annotations {path}: {other}", key="annotations")
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        remedy = "run ppdet-lite make-shapes" if Path(path).is_relative_to(SHAPES) else "see dataset/README.md"
        message = f"cannot read annotations {path}: {error.strerror}; {remedy}"
        raise UserError(message, key="annotations") from None
    lists = _decode(raw)
    if lists is None and any(name in raw for name in NUMBERS) and NAN not in raw:
        lists = _decode(_with_numbers(raw))
    return (lists, []) if lists is not None else _parse(path, raw)


def _decode(raw: bytes) -> Lists | None:
    """Decode a file whose lists have the right types; None if it is another file, or JSON that msgspec rejects."""
    try:
        content = _DECODER.decode(raw)
        annotations = separate_encoded(content.annotations, _parse_record)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    is_coco = content.images and content.categories and all(isinstance(r, dict) for r in annotations.others.values())
    return Lists(content.images, content.categories, annotations) if is_coco else None


def _with_numbers(raw: bytes) -> bytes:
    """Replace NaN and Infinity by NUMBERS, except in text: after an odd number of quotation marks."""
    places = sorted((position, name) for name in NUMBERS for position in _positions(raw, name))
    parts: list[bytes | memoryview] = []
    start, copied, in_text = 0, 0, False
    for position, name in places:
        if raw.find(b"\\", start, position) < 0:
            marks = raw.count(b'"', start, position)
        else:
            marks = _ESCAPE.sub(b"", raw[start:position]).count(b'"')
        in_text ^= marks % 2 == 1
        start = position + len(name)
        if not in_text:
            parts += [memoryview(raw)[copied:position], NUMBERS[name]]
            copied = start
    return b"".join([*parts, memoryview(raw)[copied:]])


def _positions(raw: bytes, name: bytes) -> Iterator[int]:
    position = raw.find(name)
    while position >= 0:
        yield position
        position = raw.find(name, position + len(name))


def _parse(path: str, raw: bytes) -> tuple[Lists, list[Problem]]:
    """Parse a file in any encoding of JSON, with NaN; raise UserError if it is not a COCO annotation file."""
    encoding = json.detect_encoding(raw)
    try:
        content = json.loads(raw.decode(encoding), object_hook=_without_mask)
    except UnicodeDecodeError as error:
        message = f"annotations {path} are not JSON: byte {error.start} is not valid {encoding}; save the file as UTF-8"
        raise UserError(message, key="annotations") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"annotations {path} are not JSON: {error}", key="annotations") from None
    problems = [] if encoding.startswith("utf-8") else [Problem("encoding", 1, 1, (Example(value=encoding),))]
    return _lists(path, content), problems


def _lists(path: str, content: Any) -> Lists:
    if isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]:
        raise UserError(f"{path} contains detections (a COCO results file); give annotations", key="annotations")
    for key in LISTS:
        records = content.get(key) if isinstance(content, dict) else None
        if not isinstance(records, list):
            raise UserError(f"{path} is not a COCO detection file: it has no list of {key}", key="annotations")
        if not records and key != "annotations":
            raise UserError(f"{path} is not a COCO detection file: its list of {key} is empty", key="annotations")
        _require_mappings(path, key, records)
    return Lists(content["images"], content["categories"], separate(content["annotations"]))


def _require_mappings(path: str, key: str, records: list) -> None:
    rows = [row for row, record in enumerate(records) if not isinstance(record, dict)]
    raise_if_refused(
        path, problems_at("record", rows, len(records), lambda row: Example(value={key: records[row]}, number=row + 1))
    )


def _parse_record(raw: bytes) -> Any:
    return json.loads(raw, object_hook=_without_mask, parse_float=_parse_float)


def _parse_float(text: str) -> float:
    return math.nan if text == NAN.decode() else float(text)


def _without_mask(record: dict) -> dict:
    if record.get("bbox"):
        record.pop("segmentation", None)  # nine tenths of the memory; dropped while the file is parsed
    return record
