"""Reads the three lists of a COCO annotation file; the error for a file in another format names that format."""

import json
from pathlib import Path
from typing import Any

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.other_formats import other_format
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at, raise_if_refused

LISTS = ("images", "annotations", "categories")


def read_lists(path: str, images: Path | None = None) -> tuple[dict[str, list[dict]], list[Problem]]:
    """Read images, annotations and categories; segmentations are kept only for records without a bbox.

    Raises UserError if the file is not a COCO annotation file; images: the image folder, for the message.
    """
    if (other := other_format(Path(path), images)) is not None:
        raise UserError(f"annotations {path}: {other}", key="annotations")
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        message = f"cannot read annotations {path}: {error.strerror}; see dataset/README.md"
        raise UserError(message, key="annotations") from None
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


def _lists(path: str, content: Any) -> dict[str, list[dict]]:
    if isinstance(content, list) and content and isinstance(content[0], dict) and "score" in content[0]:
        raise UserError(f"{path} contains detections (a COCO results file); give annotations", key="annotations")
    for key in LISTS:
        records = content.get(key) if isinstance(content, dict) else None
        if not isinstance(records, list):
            raise UserError(f"{path} is not a COCO detection file: it has no list of {key}", key="annotations")
        if not records and key != "annotations":
            raise UserError(f"{path} is not a COCO detection file: its list of {key} is empty", key="annotations")
        _require_mappings(path, key, records)
    return {key: content[key] for key in LISTS}


def _require_mappings(path: str, key: str, records: list) -> None:
    rows = [row for row, record in enumerate(records) if not isinstance(record, dict)]
    raise_if_refused(
        path, problems_at("record", rows, len(records), lambda row: Example(value={key: records[row]}, number=row + 1))
    )


def _without_mask(record: dict) -> dict:
    if record.get("bbox"):
        record.pop("segmentation", None)  # nine tenths of the memory; dropped while the file is parsed
    return record
