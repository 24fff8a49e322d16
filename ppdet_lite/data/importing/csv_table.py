"""CSV: a row for each box, `file,x1,y1,x2,y2,class`, or with a row of column names."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import shown
from ppdet_lite.data.importing.records import (
    Box,
    Found,
    Picture,
    class_name,
    number,
    ordered_corners,
    read_text,
    size_of,
)

COLUMNS = ("file", "x1", "y1", "x2", "y2", "class")
ALIASES = {
    "file": ("file", "filename", "file_name", "image", "image_path", "path"),
    "x1": ("x1", "xmin", "x_min"),
    "y1": ("y1", "ymin", "y_min"),
    "x2": ("x2", "xmax", "x_max"),
    "y2": ("y2", "ymax", "y_max"),
    "class": ("class", "class_name", "label"),
    "width": ("width",),
    "height": ("height",),
}


def read(source: Path, images: Path | None = None) -> Found:
    """Read a CSV file, or the only one in a folder; separated by commas, semicolons or tabs.

    A first row of column names may give the columns in any order, with width and height of the image too; others are
    passed over. A row with a file alone is an image without objects.
    images: where the images are; otherwise the paths are relative to the CSV file.

    Raises UserError with file, line and value for what is malformed.
    """
    table = _only_table(source) if source.is_dir() else source
    folder = images or table.parent
    pictures: dict[str, Picture] = {}
    columns: dict[str, int] | None = None
    for place, row in _rows(table):
        if columns is None:
            columns = _columns(row, place)
            if columns is not None:
                continue
            columns = {name: k for k, name in enumerate(COLUMNS)}
        if len(row) <= max(columns.values()):
            got = shown(",".join(row))
            raise UserError(f"{place}: {len(row)} columns, expected {max(columns.values()) + 1}: {got}")
        _take({name: row[k].strip() for name, k in columns.items()}, place, folder, pictures)
    if not pictures:
        raise UserError(f"{table}: has no row of a box")
    return Found(list(pictures.values()))


def _only_table(folder: Path) -> Path:
    tables = sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables) or "none"
        raise UserError(f"{folder}: name the CSV file; here are: {names}")
    return tables[0]


def _rows(table: Path) -> Iterator[tuple[str, list[str]]]:
    text = read_text(table)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    if not first.count(delimiter):
        raise UserError(f"{table}:1: no columns; expected {','.join(COLUMNS)}: {first[:60]!r}")
    reader, begin = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1
    try:
        for row in reader:
            place, begin = f"{table}:{begin}", reader.line_num + 1
            if any("\n" in cell or "\r" in cell for cell in row):
                raise UserError(f'{place}: a quote (") opens in this line and does not close in it')
            if any(cell.strip() for cell in row):
                yield place, row
    except csv.Error as error:
        raise UserError(f"{table}:{reader.line_num}: not readable as CSV: {error}") from None


def _columns(row: list[str], place: str) -> dict[str, int] | None:
    """The places of the columns that a first row names; None if it is a box."""
    cells = [cell.strip().lower() for cell in row]
    named = {name: next((word for word in words if word in cells), None) for name, words in ALIASES.items()}
    found = {name: cells.index(word) for name, word in named.items() if word is not None}
    if not set(found) & set(COLUMNS[1:5]):
        return None
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise UserError(
            f"{place}: no column {missing[0]} ({' or '.join(ALIASES[missing[0]])}) among {shown(', '.join(cells))}"
        )
    return found


def _take(row: dict[str, str], place: str, folder: Path, pictures: dict[str, Picture]) -> None:
    """Add a row to the picture of its file."""
    name = row["file"].replace("\\", "/")
    if not name or "\0" in name:
        raise UserError(f"{place}: no file name: {name!r}")
    picture = pictures.get(name)
    if picture is None:
        path = folder / name
        if not path.is_file():
            raise UserError(
                f"{place}: no image {shown(name)}, looked for at {shown(str(path))}; give the folder by --images"
            )
        relative = Path(name).name if Path(name).is_absolute() else name
        picture = pictures[name] = Picture(path, relative, [], place, _size(row, place))
    elif _size(row, place) != picture.size:
        raise UserError(
            f"{place}: another size of {shown(name)} than in {picture.place}: {row['width']}x{row['height']}"
        )
    if any(row[key] for key in COLUMNS[1:]):
        x1, y1, x2, y2 = (number(row[key], place, key) for key in COLUMNS[1:5])
        picture.boxes.append(Box(class_name(row["class"], place), ordered_corners(x1, y1, x2, y2, place)))


def _size(row: dict[str, str], place: str) -> tuple[int, int] | None:
    if not row.get("width") or not row.get("height"):
        return None
    return size_of(row["height"], row["width"], place)
