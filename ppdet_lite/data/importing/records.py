"""The common form into which all formats are read, and functions that read their files and parse their values."""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.files import SUFFIXES, ImageFiles

MAX_COORDINATE = 2**31 - 1  # pixels; larger values cannot be coordinates in an image
TOLERANCE = 0.1  # by which relative coordinates may be below 0 or above 1, as fractions of the image


class Box(NamedTuple):
    """One annotated object."""

    name: str  # of the class
    corners: tuple[float, float, float, float]  # x1, y1, x2, y2, continuous pixels
    difficult: bool | None = None  # None where the format does not give it
    outline: str = "box"  # what the source gives: "box", or an outline that the box encloses, such as "polygon"
    rotation: float = 0.0  # degrees by which the object is rotated against the box, an attribute that CVAT writes


class ImportedImage(NamedTuple):
    """One image and its annotations."""

    path: Path
    name: str  # path relative to the image folder, with slashes
    boxes: list[Box]
    location: str  # where its annotations are, such as "a.xml" or "boxes.csv:7"
    size: tuple[int, int] | None = None  # (h, w) if the annotations give it
    split: str | None = None  # if the source assigns one
    ignored: tuple[tuple[float, float, float, float], ...] = ()  # x1, y1, x2, y2 of regions to ignore for all classes
    extracted: Path | None = None  # a temporary copy of an image that has no file at `path` but is in its annotations

    @property
    def file(self) -> Path:
        """Return the file with the image's pixels."""
        return self.extracted or self.path


class ImportedData(NamedTuple):
    """The content of a source: a folder or file in another format."""

    images: list[ImportedImage]
    class_names: list[str] | None = None  # in order; None: those of the boxes, sorted
    lists: tuple[Path, ...] = ()  # one file per split that lists its images
    notes: tuple[str, ...] = ()  # messages on what was left out


class ImageIndex:
    """The image files below a folder, to be found by name with or without suffix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names = ImageFiles.find(folder).names
        self._names = set(self.names)
        self._stems: dict[str, list[str]] = {}
        self._file_stems: dict[str, list[str]] = {}
        for name in self.names:
            self._stems.setdefault(_stem(name), []).append(name)
            self._file_stems.setdefault(PurePosixPath(name).stem, []).append(name)

    def find(self, name: str) -> str | None:
        """Return the relative name if there is an image with this name, None otherwise."""
        return name if name in self._names else None

    def find_by_stem(self, stem: str, location: str) -> str | None:
        """Return the name of the image with this stem, or None. Raises UserError if several match."""
        return self._only(self._stems.get(stem, []), location)

    def find_below(self, name: str, location: str) -> str | None:
        """Return the name of the image with this path or stem, or else with its file stem in any folder, or None.

        Raises UserError if several match.
        """
        path = PurePosixPath(name)
        stem = path.stem if is_image_name(name) else path.name
        exact = self.find(name) or self.find_by_stem(name, location)
        return exact or self._only(self._file_stems.get(stem, []), location)

    def _only(self, names: list[str], location: str) -> str | None:
        if len(names) > 1:
            raise UserError(f"{location}: ambiguous images {', '.join(names)} in {self.folder}; move the others away")
        return names[0] if names else None


def files_below(folder: Path, suffix: str) -> list[Path]:
    """Return the files with a suffix below a folder, sorted, without hidden ones. Raises UserError if none exist."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; correct the path")
    paths = (path for path in folder.rglob("*") if path.suffix.lower() == suffix and path.is_file())
    found = sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not found:
        raise UserError(f"{folder}: contains no {suffix} file; correct the path or --from")
    return found


def existing_folder(*folders: Path) -> Path | None:
    """Return the first of the folders that exists, None if none does."""
    return next((folder for folder in folders if folder.is_dir()), None)


def unlabeled(images: Iterable[ImportedImage], paths: Iterable[Path], annotation: str) -> tuple[str, ...]:
    """Return a message on the image files among some paths that are none of the images, if there are any."""
    files = {os.path.realpath(path) for path in paths if is_image_name(path.name) and not path.name.startswith(".")}
    extra = files - {os.path.realpath(image.path) for image in images}
    return (f"images without a readable {annotation}: {len(extra)} of {len(files)}; left out",) if extra else ()


def read_text(path: Path) -> str:
    """Read a UTF-8 file. Raises UserError with its path if it cannot be read."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8: byte {content[error.start]:#04x}; save it as UTF-8") from None


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file:line", line) for the lines of a text file that are not blank, stripped."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def parse_number(text: str, location: str, what: str) -> float:
    """Parse a number of pixels or a fraction. Raises UserError with location and value if it is invalid."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_COORDINATE or "_" in text:  # float() accepts underscores
        raise UserError(
            f"{location}: {what} is not a number{' of pixels' * (abs(value) > MAX_COORDINATE)}: {_shown(text)}"
        )
    return value


def require_fraction(value: float, text: str, location: str, least: float = -TOLERANCE) -> None:
    """Raise UserError with location and text unless a coordinate is relative to the image, within TOLERANCE."""
    if not least <= value <= 1 + TOLERANCE:
        raise UserError(f"{location}: {text} is not between 0 and 1, relative to the image; is it in pixels?")


def parse_integer(text: str, location: str, what: str) -> int:
    """Parse an integer, also written as 1.0. Raises UserError with location and value if it is invalid."""
    value = parse_number(text, location, what)
    if not value.is_integer():
        raise UserError(f"{location}: {what} is not an integer: {_shown(text)}")
    return int(value)


def parse_size(height: str, width: str, location: str) -> tuple[int, int] | None:
    """Parse an image size (h, w). Return None if a side is 0, which some tools write for an unknown size."""
    size = parse_integer(height, location, "the image's height"), parse_integer(width, location, "the image's width")
    if min(size) < 0:
        raise UserError(f"{location}: the image's size is negative: {width.strip()}x{height.strip()}")
    return size if min(size) > 0 else None


def parse_class_name(text: str | None, location: str) -> str:
    """Return a class name without spaces around it. Raises UserError if it is empty or not printable."""
    name = (text or "").strip()
    if not name or not name.isprintable():
        raise UserError(f"{location}: missing or unprintable class name: {_shown(text or '')}")
    return name


def ordered_corners(x1: float, y1: float, x2: float, y2: float, location: str) -> tuple[float, float, float, float]:
    """Return the corners unchanged; they may enclose no area. Raises UserError if x2 < x1 or y2 < y1."""
    if x2 < x1 or y2 < y1:
        what = f"{x1:g}, {y1:g}, {x2:g}, {y2:g} (x1, y1, x2, y2)"
        raise UserError(f"{location}: the second corner is left of or above the first: {what}")
    return x1, y1, x2, y2


def bounding_box(points: Iterable[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Return the bounding box x1, y1, x2, y2 of points (x, y)."""
    xs, ys = zip(*points)
    return min(xs), min(ys), max(xs), max(ys)


def is_image_name(name: str) -> bool:
    """Return whether a file name has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def _stem(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
