"""CSV: a row for each box, `file,x1,y1,x2,y2,class`, optionally after a row of column names."""

import csv
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import Box, ImportedData, ImportedImage

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
_NUMBER = re.compile(r"[-+.]*[0-9]")  # the beginning of a number


def read(source: Path, images: Path | None, bad_items: BadItems) -> ImportedData:
    """Read a CSV file, or the only one in a folder, separated by commas, semicolons or tabs.

    A first row of column names may list the columns in any order, also width and height of the image; other columns are
    ignored, with a note. A row with only a file is an image without objects.
    images: the image folder; by default paths are relative to the CSV file.

    Raises UserError with file, line and value if something is malformed.
    """
    table = _only_table(source) if source.is_dir() else source
    folder = images or table.parent
    imported: dict[str, ImportedImage] = {}
    columns, width, notes = None, len(COLUMNS), []
    for location, row in _rows(table):
        if columns is None:
            columns = _columns(row, location)
            if columns is not None:
                unread = [cell.strip() for k, cell in enumerate(row) if k not in columns.values() and cell.strip()]
                notes += [f"{location}: columns that are not read: {format_value(', '.join(unread))}"] if unread else []
                width = len(row)
                continue
            columns = {name: k for k, name in enumerate(COLUMNS)}
        with bad_items.item():
            if len(row) <= max(columns.values()) or any(cell.strip() for cell in row[width:]):
                raise UserError(f"{location}: {len(row)} columns, expected {width}: {format_value(','.join(row))}")
            _add_row({name: row[k].strip() for name, k in columns.items()}, location, folder, imported)
    if not imported:
        raise UserError(f"{table}: contains no boxes{bad_items.remark()}")
    files = (path for folder in {image.path.parent for image in imported.values()} for path in folder.iterdir())
    notes += records.unlabelled(imported.values(), files, "row in the table")
    return ImportedData(list(imported.values()), notes=tuple(notes))


def _only_table(folder: Path) -> Path:
    tables = sorted(folder.glob("*.csv"))
    if len(tables) != 1:
        names = ", ".join(path.name for path in tables) or "none"
        raise UserError(f"{folder}: give the path of one CSV file; found: {names}")
    return tables[0]


def _rows(table: Path) -> Iterator[tuple[str, list[str]]]:
    text = records.read_text(table)
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    if not first.count(delimiter):
        raise UserError(f"{table}:1: no columns found; expected {','.join(COLUMNS)}: {first[:60]!r}")
    reader, begin = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1
    try:
        for row in reader:
            location, begin = f"{table}:{begin}", reader.line_num + 1
            if any("\n" in cell or "\r" in cell for cell in row):
                raise UserError(f'{location}: a quote (") is not closed in this line')
            if any(cell.strip() for cell in row):
                yield location, row
    except csv.Error as error:
        raise UserError(f"{table}:{reader.line_num}: cannot be read as CSV: {error}") from None


def _columns(row: list[str], location: str) -> dict[str, int] | None:
    """Return the index of each column named in a first row, None if the row is a box."""
    cells = [cell.strip().lower() for cell in row]
    named = {name: next((word for word in words if word in cells), None) for name, words in ALIASES.items()}
    columns = {name: cells.index(word) for name, word in named.items() if word is not None}
    words = [cell for cell in cells if cell and not _NUMBER.match(cell)]
    if not set(columns) & set(COLUMNS[1:5]) and (len(words) < len([cell for cell in cells if cell]) or len(words) < 3):
        return None
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        hint = "; x and y may be a corner or the center: write corners" if {"x", "y"} <= set(cells) else ""
        raise UserError(
            f"{location}: no column {' or '.join(ALIASES[missing[0]])} among {format_value(', '.join(cells))}{hint}"
        )
    return columns


def _add_row(row: dict[str, str], location: str, folder: Path, imported: dict[str, ImportedImage]) -> None:
    """Add the box of a row to the image of its file."""
    name = row["file"].replace("\\", "/")
    if not name or "\0" in name:
        raise UserError(f"{location}: missing or invalid file name: {name!r}")
    image = imported.get(name)
    if image is None:
        path = folder / name
        if not os.path.isfile(path):
            where = f"{format_value(name)}, expected at {format_value(str(path))}"
            raise UserError(f"{location}: no image {where}; give the folder by --images")
        relative = Path(name).name if Path(name).is_absolute() else name
        image = imported[name] = ImportedImage(path, relative, [], location, _size(row, location))
    elif _size(row, location) != image.size:
        raise UserError(
            f"{location}: size {row['width']}x{row['height']} of {format_value(name)} differs from {image.location}"
        )
    if any(row[key] for key in COLUMNS[1:]):
        x1, y1, x2, y2 = (records.parse_number(row[key], location, key) for key in COLUMNS[1:5])
        image.boxes.append(
            Box(records.parse_class_name(row["class"], location), records.ordered_corners(x1, y1, x2, y2, location))
        )


def _size(row: dict[str, str], location: str) -> tuple[int, int] | None:
    if not row.get("width") or not row.get("height"):
        return None
    return records.parse_size(row["height"], row["width"], location)
