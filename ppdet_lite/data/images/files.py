"""Image files without annotations, for inference."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.sizes import read_header

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


class ImageFile(NamedTuple):
    """One file among the images."""

    id: int  # its position
    path: str


class ImageFiles:
    """Image files below a folder, in the role of a dataset for `EvalBatches`; names are relative to the folder."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, list(names)

    @classmethod
    def find(cls, source: Path) -> "ImageFiles":
        """Take one file, or all images of a folder and its sub-folders in the order of their names.

        Hidden files and folders are left out. Raises UserError if there is nothing, or no image.
        """
        if source.is_file():
            if source.suffix.lower() not in SUFFIXES:
                raise UserError(f"{source}: not an image by its name; known are {', '.join(SUFFIXES)}")
            return cls(source.parent, [source.name])
        if not source.is_dir():
            raise UserError(f"{source}: no such image or folder, correct the path")
        files = (path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        shown = (path.relative_to(source) for path in files)
        names = sorted(path.as_posix() for path in shown if not any(part.startswith(".") for part in path.parts))
        if not names:
            raise UserError(f"{source}: holds no image ({', '.join(SUFFIXES)}), correct the path")
        return cls(source, names)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def sizes(self) -> np.ndarray:
        """[N, 2] int32 (h, w) as the files' headers have them; 1 of a file that is no image, or damaged."""
        headers = [read_header(self.root / name) for name in self.names]
        return np.array([(1, 1) if header is None else header[:2] for header in headers], np.int32)

    def info(self, index: int) -> ImageFile:
        """Return the position and path of an image."""
        return ImageFile(index, str(self.root / self.names[index]))

    def load(self, index: int) -> np.ndarray:
        """Return RGB uint8 [H, W, 3]. Raises UserError, naming the file, if it is damaged."""
        return load_image(self.info(index).path)
