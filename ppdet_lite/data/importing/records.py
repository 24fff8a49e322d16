"""What every format is read into, and how the values in its files are read."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.files import SUFFIXES, ImageFiles

LARGEST = 2**31 - 1  # pixels; what is beyond cannot be a place in an image


class Box(NamedTuple):
    """One annotated object."""

    name: str  # of its class
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2, continuous pixels
    difficult: bool | None = None  # None where the format does not say


class Picture(NamedTuple):
    """One image and what is annotated in it."""

    path: Path
    name: str  # its path relative to the folder of images, with slashes
    boxes: list[Box]
    place: str  # where it is annotated, such as "a.xml" or "boxes.csv:7"
    size: tuple[int, int] | None = None  # (h, w) where the annotation says it
    split: str | None = None  # where the source says it


class Found(NamedTuple):
    """The content of a source."""

    pictures: list[Picture]
    class_names: list[str] | None = None  # in their order; None: those of the boxes, sorted
    lists: tuple[Path, ...] = ()  # files that list the images of a split each
    notes: tuple[str, ...] = ()  # what was left out


class Images:
    """The image files below a folder, found by name or without their suffix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = ImageFiles.find(folder).names
        self._known = set(self.names)
        self._stems: dict[str, list[str]] = {}
        for name in self.names:
            self._stems.setdefault(_stem(name), []).append(name)

    def named(self, name: str) -> str | None:
        """The image with this relative name, if there is one."""
        return name if name in self._known else None

    def without_suffix(self, stem: str, place: str) -> str | None:
        """The image with this relative name before its suffix; UserError, with the place, where there are several."""
        names = self._stems.get(stem, [])
        if len(names) > 1:
            raise UserError(f"{place}: which image is it: {', '.join(names)} in {self.folder}? Move the others away")
        return names[0] if names else None


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Files of a kind below a folder, sorted, without hidden ones. Raises UserError where there is none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; correct the path")
    paths = (path for path in folder.rglob("*") if path.suffix.lower() == suffix and path.is_file())
    found = sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not found:
        raise UserError(f"{folder}: holds no {suffix} file; correct the path, or --from")
    return found


def existing_folder(*folders: Path) -> Path | None:
    """The first folder that is there."""
    return next((folder for folder in folders if folder.is_dir()), None)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file. Raises UserError, naming it, if it cannot be read."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8: byte {content[error.start]:#04x}; save it as UTF-8") from None


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, stripped, each after its place "file:line"."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def number(text: str, place: str, what: str) -> float:
    """A number of pixels or a share. Raises UserError with place and value if it is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST or "_" in text:  # Python's floats may have underscores
        raise UserError(f"{place}: {what} is no number{' of pixels' * (abs(value) > LARGEST)}: {_shown(text)}")
    return value


def whole_number(text: str, place: str, what: str) -> int:
    """A whole number, 1.0 too. Raises UserError with place and value if it is none."""
    value = number(text, place, what)
    if not value.is_integer():
        raise UserError(f"{place}: {what} is no whole number: {_shown(text)}")
    return int(value)


def size_of(height: str, width: str, place: str) -> tuple[int, int] | None:
    """A size (h, w) as the annotation says it; None where it says 0, as some tools do that do not know it."""
    size = whole_number(height, place, "the image's height"), whole_number(width, place, "the image's width")
    if min(size) < 0:
        raise UserError(f"{place}: the image's size is below 0: {width.strip()}x{height.strip()}")
    return size if min(size) > 0 else None


def class_name(text: str | None, place: str) -> str:
    """A class name without spaces around it. Raises UserError with the place if it is empty or not printable."""
    name = (text or "").strip()
    if not name or not name.isprintable():
        raise UserError(f"{place}: the object has no class name: {_shown(text or '')}")
    return name


def ordered_corners(x1: float, y1: float, x2: float, y2: float, place: str) -> tuple[float, float, float, float]:
    """The corners as they are, no area included. Raises UserError with place and values if they are interchanged."""
    if x2 < x1 or y2 < y1:
        what = f"{x1:g}, {y1:g}, {x2:g}, {y2:g} (x1, y1, x2, y2)"
        raise UserError(f"{place}: the second corner is left of or above the first: {what}")
    return x1, y1, x2, y2


def bounds(points: Iterable[tuple[float, float]]) -> tuple[float, float, float, float]:
    """The box around points (x, y)."""
    xs, ys = zip(*points)
    return min(xs), min(ys), max(xs), max(ys)


def is_image_name(name: str) -> bool:
    """Whether a name has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
