"""Read an annotation file that is refused because of single annotations, without these annotations."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.coco_file import read_coco
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.lenient_values import parse_crowd_flag, parse_integer, parse_number, segmentation_box


class ReadablePart(NamedTuple):
    """An annotation file without its unreadable annotations."""

    dataset: CocoDataset
    content: CocoFile
    rows: list[int]  # positions of the remaining annotations in the file


def read_readable_part(images: str, annotations: str) -> ReadablePart | None:
    """Read an annotation file without its unreadable annotations; return None if it is still refused."""
    content = load_content(annotations)
    images_by_id = {parse_integer(image.get("id"))[0]: image for image in content["images"] if isinstance(image, dict)}
    categories = {parse_integer(item.get("id"))[0] for item in content["categories"] if isinstance(item, dict)}
    records = content["annotations"]
    kept = [row for row, record in enumerate(records) if _is_readable(record, images_by_id, categories)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        path.write_text(json.dumps(content | {"annotations": [records[row] for row in kept]}), encoding="utf-8")
        try:
            dataset, coco_file = CocoDataset(images, str(path)), read_coco(str(path))
        except UserError:
            return None
    dataset.file = annotations
    return ReadablePart(dataset, coco_file, kept)


def load_content(path: str) -> dict[str, Any]:
    """Return the complete content of an annotation file, which must be valid JSON."""
    raw = Path(path).read_bytes()
    return json.loads(raw.decode(json.detect_encoding(raw)))


def _is_readable(record: Any, images: dict[int | None, dict], categories: set[int | None]) -> bool:
    """Return whether an annotation can be read, possibly after a repair. images and categories are keyed by id."""
    if not isinstance(record, dict):
        return False
    image, category = parse_integer(record.get("image_id"))[0], parse_integer(record.get("category_id"))[0]
    if image is None or image not in images or category is None or category not in categories:
        return False
    box, flag = record.get("bbox"), record.get("iscrowd")
    if box in (None, []):
        size = [parse_integer(images[image].get(key))[0] or 0 for key in ("height", "width")]
        has_box = segmentation_box(record.get("segmentation"), size) is not None
    else:
        has_box = isinstance(box, list) and len(box) == 4 and all(parse_number(value)[0] is not None for value in box)
    has_crowd_flag = flag is None or flag != flag or parse_crowd_flag(flag)[0] is not None
    return has_box and has_crowd_flag and parse_number(record.get("area"))[0] is not None
