"""Small COCO sets written to a temporary folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ppdet_lite.data.annotations.dataset import CocoDataset

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "cow"}]


class CocoFiles:
    """A COCO set on disk; `content` may be changed before `write`."""

    def __init__(self, folder: Path, sizes: list[tuple[int, int]]) -> None:
        self.folder, self.images, self.json = folder, folder / "images", folder / "instances.json"
        self.images.mkdir(parents=True)
        rng = np.random.default_rng(0)
        self.content: Any = {"images": [], "annotations": [], "categories": CATEGORIES}
        for number, (height, width) in enumerate(sizes):
            name = f"{number}.png"
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            (self.images / name).write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
            image = {"id": 100 + number, "file_name": name, "height": height, "width": width}
            self.content["images"].append(image)

    def add(self, image: int, bbox: list[float], category: int = 3, **more: Any) -> None:
        """Annotate an image, given by its position; area, iscrowd and id are there unless they are set to None."""
        record = {"id": len(self.content["annotations"]) + 1, "image_id": 100 + image, "category_id": category}
        record |= {"bbox": bbox, "area": bbox[2] * bbox[3] / 2, "iscrowd": 0} | more
        self.content["annotations"].append({key: value for key, value in record.items() if value is not None})

    def write(self) -> None:
        """Write the annotation file."""
        self.json.write_text(json.dumps(self.content), encoding="utf-8")

    def read(self, **options: Any) -> CocoDataset:
        """Write the annotation file and read the set."""
        self.write()
        return CocoDataset(str(self.images), str(self.json), **options)


@pytest.fixture
def coco_files(tmp_path: Path) -> Callable[..., CocoFiles]:
    """Make a set with images of the given (height, width)."""
    return lambda sizes, name="set": CocoFiles(tmp_path / name, sizes)


@pytest.fixture
def files(coco_files: Callable[..., CocoFiles]) -> CocoFiles:
    """Two images of 40 x 60, two boxes on the first and one on the second; `content` is a copy of its own."""
    files = coco_files([(40, 60)] * 2)
    files.add(0, [1, 2, 30, 20])
    files.add(0, [5, 6, 7, 8], category=7)
    files.add(1, [0, 0, 9, 9], category=90)
    files.content = json.loads(json.dumps(files.content))
    return files
