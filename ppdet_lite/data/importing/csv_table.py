"""CSV: a row for each box, `file,x1,y1,x2,y2,class`, optionally after a row of column names."""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import Box, ImportedData, ImportedImage
from ppdet_lite.data.importing.splits import split_of_name

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
    """Read a CSV file, or those in a folder, separated by commas, semicolons or tabs.

    A first row of column names may list the columns in any order, also width and height of the image; other columns are
    ignored, with a note. A row with only a file is an image without objects. Several files are the splits that they or
    their folders are named after.
    images: the image folder; by default paths are relative to the CSV file.

    Raises UserError with file, line and value if something is malformed.
    """
    imported, notes = [], []
    for table, split in _tables(source) if source.is_dir() else [(source, None)]:
        rows, remarks = _read_table(table, split, images or table.parent, bad_items)
        imported += rows
        notes += remarks
    files = (path for folder in {image.path.parent for image in imported} for path in folder.iterdir())
    notes += records.unlabeled(imported, files, "row in the table")
    return ImportedData(imported, notes=tuple(notes))


def split_tables(folder: Path, tables: Sequence[Path]) -> list[tuple[Path, str | None]]:
    """Return CSV files below a folder, each with the split that it or its folder is named after; None if it is alone.

    Raises UserError if there are several, unless they are named after different splits.
    """
    splits = [_split_of_path(path.relative_to(folder)) for path in tables]
    if not tables or (len(tables) > 1 and (None in splits or len(set(splits)) < len(splits))):
        names = ", ".join(path.relative_to(folder).as_posix() for path in tables) or "none"
        hint = "name them after their splits, such as train.csv and val.csv, or " if tables else ""
        raise UserError(f"{folder}: {hint}give the path of one CSV file; found: {names}")
    return list(zip(tables, splits, strict=True))


def _split_of_path(path: Path) -> str | None:
    names = (path.stem, *reversed(path.parts[:-1]))
    return next((split for split in map(split_of_name, names) if split is not None), None)


def _tables(folder: Path) -> list[tuple[Path, str | None]]:
    """Return the CSV files in a folder, or else those in the folders of splits in it."""
    tables = sorted(folder.glob("*.csv"))
    if len(tables) == 1:
        return [(tables[0], None)]
    return split_tables(
        folder, tables or [path for path in sorted(folder.glob("*/*.csv")) if split_of_name(path.parent.name)]
    )


def _read_table(
    table: Path, split: str | None, folder: Path, bad_items: BadItems
) -> tuple[list[ImportedImage], list[str]]:
    """Return the images of a CSV file, and messages on the columns that are not read."""
    imported: dict[str, ImportedImage] = {}
    columns, width, notes = None, len(COLUMNS), []
    for location, row in read_rows(table, COLUMNS):
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
            _add_row({name: row[k].strip() for name, k in columns.items()}, location, folder, split, imported)
    if not imported:
        raise UserError(f"{table}: contains no boxes{bad_items.remark()}")
    return list(imported.values()), notes


def read_rows(table: Path, expected: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield ("file:line", cells) for the rows of a CSV file that are not blank; expected: the names of its columns.

    Raises UserError with file and line if it is malformed.
    """
    text = records.read_text(table)
    first = next((line.rstrip("\r\n") for line in io.StringIO(text, newline="") if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    if not first.count(delimiter):
        raise UserError(f"{table}:1: no columns found; expected {','.join(expected)}: {first[:60]!r}")
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


def _add_row(
    row: dict[str, str], location: str, folder: Path, split: str | None, imported: dict[str, ImportedImage]
) -> None:
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
        image = imported[name] = ImportedImage(path, relative, [], location, _size(row, location), split)
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
