"""Where image files are and how large, without decoding them."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ppdet_lite.data.images.decoding import TURNED, exif_orientation

MENDED = {"size_missing", "size_swapped"}  # kinds of problems where the file's size counts
ROUNDING = 0.5  # pixels by which a box may reach beyond its image without a word


class Header(NamedTuple):
    """What a file's header says of its image."""

    height: int  # as it is shown, and loaded
    width: int
    turned: bool  # stored with height and width swapped, and turned by its EXIF orientation


def read_header(path: str | Path) -> Header | None:
    """The size of an image by its header; None where there is no such image."""
    from PIL import Image  # Paddle brings it

    if not os.path.isfile(path):  # a pipe would never answer
        return None
    try:
        with Image.open(path) as image:
            (width, height), turned = image.size, exif_orientation(image) in TURNED
    except Exception:  # Pillow's readers raise nearly anything of damaged files
        return None
    return Header(width, height, True) if turned else Header(height, width, False)


def compare(paths: Iterable[Path], listed: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Compare the listed sizes of N images with their files.

    listed: [N, 2] (h, w), 0 where unknown. reach: [N, 2] (y, x), how far the boxes of each image go.
    Returns the sizes of the files, 0 for those that are no images, and the places of each kind of problem.
    """
    sizes, found = np.zeros_like(listed), {}
    for place, path in enumerate(paths):
        header = read_header(path)
        kind = _difference(header, tuple(listed[place].tolist()), reach[place])
        if header is not None:
            sizes[place] = header.height, header.width
        if kind is not None:
            found.setdefault(kind, []).append(place)
    return sizes, found


def _difference(header: Header | None, listed: tuple[int, int], reach: np.ndarray) -> str | None:
    """The kind of problem that a listed size is, None where it is the file's or the file tells nothing."""
    if min(listed) <= 0:
        return "size_unknown" if header is None else "size_missing"
    if header is None or (header.height, header.width) == listed:
        return None
    if (header.width, header.height) != listed:
        return "size_other"
    if header.turned:
        return "size_turned"
    return "size_swapped" if (reach <= np.array(listed[::-1]) + ROUNDING).all() else "size_other"


def missing(folder: Path, names: Sequence[str]) -> np.ndarray:
    """Which of the files are not below a folder, bool [names]; each folder is listed once."""
    listed: dict[str, set[str]] = {}
    found = np.zeros(len(names), bool)
    for number, name in enumerate(names):
        parent, _, file = name.rpartition("/")
        if parent not in listed:
            listed[parent] = _files(os.path.join(folder, f"{parent}/" if name.startswith("/") else parent))
        found[number] = file in listed[parent] or os.path.isfile(folder / name)
    return ~found


def elsewhere(folder: Path, name: str) -> str | None:
    """Where a missing file is instead: without folders that its name repeats, or without the image folder's own."""
    parts = name.split("/")
    tries = [folder / "/".join(parts[i:]) for i in range(1, len(parts))] + [folder.parent / name]
    return next((str(path) for path in tries if os.path.isfile(path)), None)


def with_slashes(folder: Path, names: Sequence[str]) -> tuple[list[str], list[int]]:
    """The names with backslashes as slashes where no file has the name as it is, and which ones were changed."""
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
