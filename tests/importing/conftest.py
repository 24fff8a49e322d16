"""Small sources in other formats, written to a temporary folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.importing.convert import import_data


class Source:
    """A folder to import from, and what becomes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder / "source", folder / "output"
        self.folder.mkdir()

    def write(self, name: str, text: str) -> Path:
        """Write a text file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def draw(self, name: str, height: int, width: int, orientation: int = 1) -> Path:
        """Write an image file, stored `height` high, to be shown as the EXIF orientation says."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(path, exif=exif)
        return path

    def bring_in(self, form: str, source: str = "", **options: Any) -> dict[str, dict]:
        """Import, and return each split's file."""
        import_data(form, self.folder / source, self.output, **options)
        files = sorted((self.output / "annotations").glob("instances_*.json"))
        return {path.stem.removeprefix("instances_"): json.loads(path.read_text(encoding="utf-8")) for path in files}

    def refusal(self, form: str, source: str = "", **options: Any) -> str:
        """Import what cannot be, and return the one line, without the option that skips it; nothing may be left.

        Paths are relative to the source.
        """
        with pytest.raises(UserError) as caught:
            import_data(form, self.folder / source, self.output, **options)
        assert not self.output.exists() and not list(self.output.parent.glob(".*"))
        message = str(caught.value)
        assert "\n" not in message
        return message.replace(f"{self.folder}/", "").removesuffix("; or leave it out with --skip-bad")


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """An empty source."""
    return Source(tmp_path)


@pytest.fixture
def boxes_of() -> Callable[[dict], list]:
    """Image, class and box of each annotation of a COCO file, in its order."""

    def read(content: dict) -> list:
        images = {image["id"]: image["file_name"] for image in content["images"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        return [(images[a["image_id"]], names[a["category_id"]], a["bbox"]) for a in content["annotations"]]

    return read
