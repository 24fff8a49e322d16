"""Open Images: CSV files with a row for each box, relative to the image, and class names in another file."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.images.sizes import read_header
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.csv_table import read_rows, split_tables
from ppdet_lite.data.importing.records import Box, ImageIndex, ImportedData, ImportedImage

SIDES = ("XMin", "YMin", "XMax", "YMax")
REQUIRED = ("ImageID", "LabelName", *SIDES)
GROUP = "IsGroupOf"
GROUP_FLAGS = {"1": True, "true": True, "0": False, "false": False, "-1": False, "": False}  # -1: unknown
DESCRIPTIONS = ("*class-descriptions*.csv", "classes.csv")


def read(source: Path, images: Path | None, bad_items: BadItems) -> ImportedData:
    """Read a CSV file with the columns REQUIRED, or all of those below a folder, as the splits they are named after.

    images: the image folder; by default images or data in the source, or the source itself. An image has the name
        `ImageID` in any folder in it. Images that are not there are left out: the files of Open Images list millions.

    The names of the classes come from a file of DESCRIPTIONS beside the CSV file, in the source, or in a folder
    metadata; without one, they are the values of LabelName. Boxes of groups (IsGroupOf) are marked as difficult. The
    other attributes are not read.

    Raises UserError with file, line and value if something is malformed.
    """
    root = source if source.is_dir() else source.parent
    if not source.is_dir() and root.name in ("annotations", "labels"):
        root = root.parent
    index = ImageIndex(images or records.existing_folder(root / "images", root / "data") or root)
    imported: list[ImportedImage] = []
    notes: list[str] = []
    for table, split in split_tables(*_tables(source)):
        reader = _TableReader(table, split, index, _class_names(table, root, bad_items), bad_items)
        imported += reader.images.values()
        notes += reader.notes()
    files = (index.folder / name for name in index.names)
    return ImportedData(imported, notes=(*notes, *records.unlabeled(imported, files, "row in the table")))


def _tables(source: Path) -> tuple[Path, list[Path]]:
    """Return a folder and the CSV files in it that contain boxes."""
    if not source.is_dir():
        return source.parent, [source]
    tables = [path for path in records.files_below(source, ".csv") if _has_boxes(path)]
    if not tables:
        raise UserError(f"{source}: no CSV file has the columns {', '.join(REQUIRED)}; correct the path or --from")
    return source, tables


def _has_boxes(table: Path) -> bool:
    with open(table, encoding="utf-8-sig", errors="replace") as file:
        return set(REQUIRED) <= {cell.strip() for cell in file.readline().split(",")}


def _class_names(table: Path, root: Path, bad_items: BadItems) -> dict[str, str] | None:
    """Return the class name of each LabelName, None without a file of them; equal names are followed by LabelName."""
    folders = (table.parent, root, table.parent.parent / "metadata", root / "metadata")
    found = [path for folder in folders for pattern in DESCRIPTIONS for path in sorted(folder.glob(pattern))]
    if not found:
        return None
    path = min(found, key=lambda path: "boxable" not in path.name)  # those with boxes, if there is a file of them
    names: dict[str, str] = {}
    for location, row in read_rows(path, ("LabelName", "DisplayName")):
        with bad_items.item():
            if len(row) != 2:
                raise UserError(f"{location}: {len(row)} columns, expected 2: {format_value(','.join(row))}")
            if row[0].strip() != "LabelName":
                names[row[0].strip()] = records.parse_class_name(row[1], location)
    counts = Counter(names.values())
    return {label: name if counts[name] == 1 else f"{name} ({label})" for label, name in names.items()}


class _TableReader:
    """Reads the rows of one CSV file into images."""

    def __init__(
        self, table: Path, split: str | None, index: ImageIndex, names: dict[str, str] | None, bad_items: BadItems
    ) -> None:
        self.table, self.split, self.index, self.names = table, split, index, names
        self.images: dict[str, ImportedImage] = {}
        self._sizes: dict[str, tuple[int, int]] = {}  # (h, w)
        self._missing: set[str] = set()
        rows = read_rows(table, REQUIRED)
        columns = self._columns(rows)
        for location, row in rows:
            with bad_items.item():
                if len(row) != len(columns):
                    count = f"{len(row)} columns, expected {len(columns)}"
                    raise UserError(f"{location}: {count}: {format_value(','.join(row))}")
                self._add({name: cell.strip() for name, cell in zip(columns, row, strict=True)}, location)
        if self._missing and not self.images:
            where = f"{index.folder}, such as {format_value(min(self._missing))}"
            raise UserError(
                f"{table}: none of its {len(self._missing)} images is in {where}; give the folder by --images"
            )
        if not self.images:
            raise UserError(f"{table}: contains no boxes{bad_items.remark()}")

    def notes(self) -> list[str]:
        """Return messages on missing images and class names."""
        notes = []
        if count := len(self._missing):
            images = f"images of {self.table} that are not in {self.index.folder}"
            notes.append(f"{images}: {count} of {count + len(self.images)}; left out")
        if self.names is None:
            notes.append(f"{self.table}: no file {DESCRIPTIONS[0]} beside it; the class names are those in LabelName")
        return notes

    def _columns(self, rows: Iterator[tuple[str, list[str]]]) -> list[str]:
        location, row = next(rows, (f"{self.table}:1", []))
        columns = [cell.strip() for cell in row]
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise UserError(f"{location}: no column {missing[0]} among {format_value(', '.join(columns))}")
        return columns

    def _add(self, row: dict[str, str], location: str) -> None:
        """Add the box of a row to its image."""
        key = row["ImageID"]
        if key in self._missing:
            return
        if key not in self.images:
            name = self.index.find_below(key.replace("\\", "/"), location) if key else None
            if name is None:
                self._missing.add(key)
                return
            header = read_header(self.index.folder / name)
            if header is None:
                raise UserError(f"{self.index.folder / name}: damaged or not an image; remove it")
            self._sizes[key] = header.height, header.width
            self.images[key] = ImportedImage(self.index.folder / name, name, [], location, split=self.split)
        values = []
        for side in SIDES:
            values.append(records.parse_number(row[side], location, side))
            records.require_fraction(values[-1], row[side], location)
        x1, y1, x2, y2 = records.ordered_corners(values[0], values[1], values[2], values[3], location)
        height, width = self._sizes[key]
        corners = (x1 * width, y1 * height, x2 * width, y2 * height)
        self.images[key].boxes.append(Box(self._name(row["LabelName"], location), corners, _is_group(row, location)))

    def _name(self, label: str, location: str) -> str:
        if self.names is None:
            return records.parse_class_name(label, location)
        if label not in self.names:
            raise UserError(f"{location}: the class descriptions have no LabelName {format_value(label)}")
        return self.names[label]


def _is_group(row: dict[str, str], location: str) -> bool | None:
    if GROUP not in row:
        return None
    if row[GROUP].lower() not in GROUP_FLAGS:
        raise UserError(f"{location}: {GROUP} is none of 0, 1 and -1: {format_value(row[GROUP])}")
    return GROUP_FLAGS[row[GROUP].lower()]
