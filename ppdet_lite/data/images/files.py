"""Folders of image files without annotations, for inference."""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.sizes import read_header

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
KNOWN = {*SUFFIXES, ".json", ".jsonl", ".txt", ".xml", ".csv", ".yaml", ".yml"}  # with annotations beside images


class ImageFile(NamedTuple):
    """One of the image files."""

    id: int  # its index
    path: str


class ImageFiles:
    """Image files below a folder, usable as the dataset of `EvalBatches`; names are relative to the folder."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, list(names)

    @classmethod
    def find(cls, source: Path) -> "ImageFiles":
        """Find one file, or all images of a folder and its sub-folders, sorted by name.

        Skips hidden files and folders. Logs a warning on the other files skipped, except for annotations. Raises
        UserError if the source does not exist or contains no image.
        """
        if source.is_file():
            if source.suffix.lower() not in SUFFIXES:
                raise UserError(f"{source}: not an image file; supported are {', '.join(SUFFIXES)}")
            return cls(source.parent, [source.name])
        if not source.is_dir():
            raise UserError(f"{source}: no such image or folder; correct the path")
        relative = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
        files = [path for path in relative if not any(part.startswith(".") for part in path.parts)]
        names = sorted(path.as_posix() for path in files if path.suffix.lower() in SUFFIXES)
        others = Counter(path.suffix.lower() for path in files)
        counts = [f"{n} {suffix or 'without suffix'}" for suffix, n in sorted(others.items()) if suffix not in KNOWN]
        skipped = f"skipped files: {', '.join(counts)}; supported are {', '.join(SUFFIXES)}"
        if not names:
            reason = skipped if counts else f"supported are {', '.join(SUFFIXES)}; correct the path"
            raise UserError(f"{source}: contains no image; {reason}")
        if counts:
            get_logger().warning("%s: %s", source, skipped)
        return cls(source, names)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Return the sizes [N, 2] int32 (h, w) from the headers of the files; (1, 1) for files that are not images."""
        headers = [read_header(self.root / name) for name in self.names]
        return np.array([(1, 1) if header is None else header[:2] for header in headers], np.int32)

    def info(self, index: int) -> ImageFile:
        """Return the index and path of an image."""
        return ImageFile(index, str(self.root / self.names[index]))

    def load(self, index: int) -> np.ndarray:
        """Return RGB uint8 [H, W, 3]. Raises UserError with the path if the file is damaged."""
        return load_image(self.info(index).path)
