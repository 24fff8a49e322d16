"""KITTI: a text file for each image with lines of 15 numbers and words, in label_2, and the images in image_2."""

from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import Box, ImageIndex, ImportedData, ImportedImage

LABELS, IMAGES = "label_2", "image_2"
IGNORE = "DontCare"  # the type of regions in which objects are not annotated
FIELDS = (
    *("type", "truncated", "occluded", "alpha", "left", "top", "right", "bottom"),
    *("height", "width", "length", "x", "y", "z", "rotation_y", "score"),
)
BOX = slice(4, 8)


def read(source: Path, images: Path | None, bad_items: BadItems) -> ImportedData:
    """Read the folders label_2 at or below the source, or else its text files.

    images: the image folder; by default image_2 or images beside label_2, or the folder of the text files. Folders of
        images in it may be named as those that contain a label_2. The image of a text file has its name.

    Regions of the type DontCare are to be ignored for all classes. How much objects are truncated or occluded and their
    position in space are not read.

    Raises UserError with file, line and value if something is malformed.
    """
    is_labels = source.name == LABELS or not source.is_dir()
    folders = [] if is_labels else sorted(path for path in source.rglob(LABELS) if path.is_dir())
    imported: list[ImportedImage] = []
    files: list[Path] = []
    scored = 0
    for labels in folders or [source]:
        index, prefix = _image_index(labels, source, images)
        files += [index.folder / name for name in index.names]
        for file in records.files_below(labels, ".txt"):
            with bad_items.item():
                stem = file.relative_to(labels).with_suffix("").as_posix()
                name = index.find_by_stem(f"{prefix}{stem}", str(file)) or index.find_by_stem(stem, str(file))
                if name is None:
                    raise UserError(f"{file}: no image {stem}.* in {index.folder}; give the folder by --images")
                boxes, ignored, with_score = _read_objects(file, bad_items)
                scored += with_score
                relative = (labels.parent.relative_to(source) / name).as_posix() if labels in folders else name
                imported.append(ImportedImage(index.folder / name, relative, boxes, str(file), ignored=ignored))
    note = f"objects with a score: {scored}; not read. Are these predictions?"
    notes = records.unlabeled(imported, files, "text file")
    return ImportedData(imported, notes=((note,) if scored else ()) + notes)


def _image_index(labels: Path, source: Path, images: Path | None) -> tuple[ImageIndex, str]:
    """Return the images of a folder of text files, and the folder in it that may contain those of these files."""
    if images is not None:
        has_folder = labels.name == LABELS and labels.parent != source and labels != source
        return ImageIndex(images), f"{labels.parent.relative_to(source).as_posix()}/" if has_folder else ""
    beside = [labels.parent / IMAGES, labels.parent / "images"] if labels.name == LABELS else []
    return ImageIndex(records.existing_folder(*beside, labels / "images") or labels), ""


def _read_objects(
    file: Path, bad_items: BadItems
) -> tuple[list[Box], tuple[tuple[float, float, float, float], ...], int]:
    """Return the boxes of a text file, the regions to ignore, and the number of objects with a score."""
    boxes, ignored, scored = [], [], 0
    for location, line in records.read_lines(file):
        with bad_items.item():
            texts = line.split()
            if not len(FIELDS) - 1 <= len(texts) <= len(FIELDS):
                expected = f"expected {len(FIELDS) - 1}, or {len(FIELDS)} with a score"
                raise UserError(f"{location}: {len(texts)} fields, {expected}: {format_value(line)}")
            numbers = [
                records.parse_number(text, location, name) for name, text in zip(FIELDS[1:], texts[1:], strict=False)
            ]
            x1, y1, x2, y2 = numbers[BOX.start - 1 : BOX.stop - 1]
            corners = records.ordered_corners(x1, y1, x2, y2, location)
            if texts[0] == IGNORE:
                ignored.append(corners)
            else:
                boxes.append(Box(records.parse_class_name(texts[0], location), corners))
            scored += len(texts) == len(FIELDS)
    return boxes, tuple(ignored), scored
