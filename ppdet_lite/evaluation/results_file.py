"""Reading of COCO results files, checked against their dataset."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset


class Results(NamedTuple):
    """The detections of a file in their order there; D = 0 is legal."""

    image_ids: np.ndarray  # [D] int64
    category_ids: np.ndarray  # [D] int64
    xywh: np.ndarray  # [D, 4] float64, original pixels
    scores: np.ndarray  # [D] float64


class _Record(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


def read_results(path: Path, dataset: CocoDataset) -> Results:
    """Read a COCO results file (bbox).

    Raises UserError if the file is missing or invalid, or has images or categories that are not in the dataset. The
    message contains the number of the entry.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read results {path}: {error.strerror}") from None
    try:
        results = _packed(msgspec.json.decode(content, type=list[_Record]))
    except (msgspec.DecodeError, OverflowError, RecursionError):
        results = _packed(_parse_strictly(path, content))
    for key, values, known in (
        ("image_id", results.image_ids, dataset.image_ids),
        ("category_id", results.category_ids, dataset.category_ids),
    ):
        unknown = ~np.isin(values, known)
        if unknown.any():
            first = int(np.argmax(unknown))
            raise UserError(
                f"results {path}: entry {first + 1} has {key} {values[first]}, which is not in {dataset.file}; "
                "are they the results of another dataset?"
            )
    return results


def _packed(records: list[_Record]) -> Results:
    return Results(
        np.array([record.image_id for record in records], np.int64),
        np.array([record.category_id for record in records], np.int64),
        np.array([record.bbox for record in records], np.float64).reshape(-1, 4),
        np.array([record.score for record in records], np.float64),
    )


def _parse_strictly(path: Path, content: bytes) -> list[_Record]:
    """Parse a file that msgspec rejected. Raises UserError with the number of the first invalid entry."""
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"results {path} are not JSON: {error}") from None
    if not isinstance(records, list):
        raise UserError(f"results {path}: expected a list of detections, found {type(records).__name__}")
    for number, record in enumerate(records, start=1):
        if not _is_detection(record):
            raise UserError(
                f"results {path}: entry {number} is not {{image_id, category_id, bbox [x, y, w, h], score}}"
            )
    return [_Record(record["image_id"], record["category_id"], record["bbox"], record["score"]) for record in records]


def _is_detection(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("bbox"), list):
        return False
    ids = [record.get("image_id"), record.get("category_id")]
    numbers = [*record["bbox"], record.get("score")]
    return (
        len(numbers) == 5
        and all(type(value) is int and value.bit_length() < 64 for value in ids)
        and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
    )
