"""What can be read of an annotation file that is refused for some of its annotations: all others."""

import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.coco_file import read_coco
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.lenient_values import crowd, number, segmentation_box, whole


class Rest(NamedTuple):
    """A file without the annotations that nobody can read."""

    dataset: CocoDataset
    content: CocoFile
    kept: list[int]  # the rows of the file's annotations that are in it


def read_rest(images: str, annotations: str) -> Rest | None:
    """Read an annotation file without what is wrong in single annotations; None if it is refused all the same."""
    content = load_content(annotations)
    known = {whole(image.get("id"))[0]: image for image in content["images"] if isinstance(image, dict)}
    categories = {whole(each.get("id"))[0] for each in content["categories"] if isinstance(each, dict)}
    records = content["annotations"]
    kept = [row for row, record in enumerate(records) if _is_readable(record, known, categories)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "annotations.json")
        path.write_text(json.dumps(content | {"annotations": [records[row] for row in kept]}), encoding="utf-8")
        try:
            dataset, found = CocoDataset(images, str(path)), read_coco(str(path))
        except UserError:
            return None
    dataset.file = annotations
    return Rest(dataset, found, kept)


def load_content(path: str) -> dict[str, Any]:
    """An annotation file, known to be JSON, with all that is in it."""
    raw = Path(path).read_bytes()
    return json.loads(raw.decode(json.detect_encoding(raw)))


def _is_readable(record: Any, images: dict[int | None, dict], categories: set[int | None]) -> bool:
    """Whether reading takes an annotation, as it is or mended; images and categories are known by their ids."""
    if not isinstance(record, dict):
        return False
    image, category = whole(record.get("image_id"))[0], whole(record.get("category_id"))[0]
    if image is None or image not in images or category is None or category not in categories:
        return False
    box, flag = record.get("bbox"), record.get("iscrowd")
    if box in (None, []):
        size = [whole(images[image].get(key))[0] or 0 for key in ("height", "width")]
        has_box = segmentation_box(record.get("segmentation"), size) is not None
    else:
        has_box = isinstance(box, list) and len(box) == 4 and all(number(value)[0] is not None for value in box)
    says_crowd = flag is None or flag != flag or crowd(flag)[0] is not None
    return has_box and says_crowd and number(record.get("area"))[0] is not None
