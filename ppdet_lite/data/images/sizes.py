"""Finds image files and reads their sizes without decoding them."""

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppdet_lite.data.images.decoding import TRANSPOSED, exif_orientation

CORRECTED = {"size_missing", "size_swapped"}  # kinds of problems that are corrected to the size of the image file
_LIMIT_LOCK = threading.Lock()  # for Pillow's limit of pixels, which is a global variable
ROUNDING = 0.5  # pixels by which a box may reach beyond its image without being reported


class Header(NamedTuple):
    """The size of an image from the header of its file."""

    height: int  # as displayed and loaded, after EXIF rotation
    width: int
    transposed: bool  # whether the EXIF orientation swaps the stored height and width


def read_header(path: str | Path) -> Header | None:
    """Return the size of an image from its header, None if the file is missing or not an image."""
    from PIL import Image  # installed with Paddle

    if not os.path.isfile(path):  # opening a pipe would block
        return None
    try:
        with _LIMIT_LOCK:
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # Pillow refuses images that we can decode
            try:
                image = Image.open(path)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
        with image:
            (width, height), transposed = image.size, exif_orientation(image) in TRANSPOSED
    except Exception:  # Pillow raises many types of errors for damaged files
        return None
    return Header(width, height, True) if transposed else Header(height, width, False)


def compare_sizes(
    paths: Iterable[str | Path], annotated: np.ndarray, extents: np.ndarray
) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Compare the annotated sizes of N images with their files.

    annotated: [N, 2] (h, w), 0 where unknown. extents: [N, 2], the largest y and x of the boxes of each image.
    Returns the sizes of the files, 0 where a file is not an image, and the indices of the images by kind of problem.
    """
    sizes = np.zeros_like(annotated)
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        header = read_header(path)
        kind = _size_problem(header, tuple(annotated[row].tolist()), extents[row])
        if header is not None:
            sizes[row] = header.height, header.width
        if kind is not None:
            rows.setdefault(kind, []).append(row)
    return sizes, rows


def _size_problem(header: Header | None, annotated: tuple[int, int], extent: np.ndarray) -> str | None:
    """Return the kind of problem of an annotated size, None if it is that of the file or the file is not readable."""
    if min(annotated) <= 0:
        return "size_unknown" if header is None else "size_missing"
    if header is None or (header.height, header.width) == annotated:
        return None
    if (header.width, header.height) != annotated:
        return "size_other"
    if header.transposed:
        return "size_turned"
    return "size_swapped" if (extent <= np.array(annotated[::-1]) + ROUNDING).all() else "size_other"


def missing_files(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Return which of the files do not exist below a folder, bool [names]; each directory is listed only once."""
    listings: dict[str, set[str]] = {}
    exists = np.zeros(len(names), bool)
    for i, name in enumerate(names):
        parent, _, file = name.rpartition("/")
        if parent not in listings:
            listings[parent] = _files(os.path.join(folder, f"{parent}/" if name.startswith("/") else parent))
        exists[i] = file in listings[parent] or os.path.isfile(folder / name)
    return ~exists


def searched_paths(folder: Path, name: str) -> dict[str, str]:
    """Return the path where a missing image was expected and, under "it is at", where it was found instead.

    It is searched in `folder` without leading directories of its name, and in the parent of `folder`.
    """
    parts = name.split("/")
    tries = [folder / "/".join(parts[i:]) for i in range(1, len(parts))] + [folder.parent / name]
    found = next((str(path) for path in tries if os.path.isfile(path)), None)
    return {"tried": str(folder / name)} | ({} if found is None else {"it is at": found})


def replace_backslashes(folder: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Replace backslashes by slashes in names that no file has; return the names and the indices of those changed."""
    changed = [i for i, name in enumerate(names) if "\\" in name and not os.path.isfile(folder / name)]
    result = list(names)
    for i in changed:
        result[i] = names[i].replace("\\", "/")
    return result, changed


def _files(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError:
        return set()
