"""Pascal VOC: an XML file for each image, and lists of images in ImageSets/Main."""

import contextlib
import math
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import Box, ImportedData, ImportedImage
from ppdet_lite.data.importing.xml_nodes import UNREADABLE, Element, read_xml

ANNOTATIONS = "Annotations"
SIDES = ("xmin", "ymin", "xmax", "ymax")


def read(source: Path, images: Path | None, bad_items: BadItems, origin: int = 0) -> ImportedData:
    """Read a VOC tree, given by its root or its Annotations folder, or a folder of XML files.

    images: the image folder; by default JPEGImages or images in the source, or the source itself. The image of an XML
        file is the one with the same name, or otherwise the one named in <filename>.
    origin: 0 for continuous corners: a box is xmax - xmin wide. 1 for the pixel indices of the VOC challenges, which
        count from 1 and are inclusive: a box extends from xmin - 1 to xmax.

    Raises UserError with file, line and value if something is malformed.
    """
    if source.name == ANNOTATIONS:
        source = source.parent
    annotations = records.existing_folder(source / ANNOTATIONS) or source
    files = records.files_below(annotations, ".xml")
    folder = images or records.existing_folder(source / "JPEGImages", source / "images") or source
    index = records.ImageIndex(folder)
    imported = []
    for file in files:
        with bad_items.item():
            imported.append(_read_image(file, file.relative_to(annotations), index, bad_items, origin))
    extra = len(set(index.names) - {image.name for image in imported})
    notes = (
        (f"images in {folder} without a readable XML file: {extra} of {len(index.names)}; left out",) if extra else ()
    )
    return ImportedData(imported, lists=_lists(source / "ImageSets" / "Main"), notes=notes)


def _lists(folder: Path) -> tuple[Path, ...]:
    """Return the lists of train, val and test that exist; without train and val, trainval.txt is their union."""
    lists = [folder / f"{split}.txt" for split in ("train", "val", "test")]
    if not (lists[0].is_file() or lists[1].is_file()):
        lists[0] = folder / "trainval.txt"
    return tuple(path for path in lists if path.is_file())


def _read_image(
    file: Path, relative: Path, index: records.ImageIndex, bad_items: BadItems, origin: int
) -> ImportedImage:
    root = read_xml(file)
    if root.tag != "annotation":
        hint = "; import CVAT's tasks with --from cvat" if root.tag == "annotations" else ""
        raise UserError(f"{root.location}: <{root.tag}> is not VOC's <annotation>{hint}")
    name = _image_name(root, relative, index)
    element, size = root.find("size"), None
    if element is not None:
        size = records.parse_size(element.require("height").text, element.require("width").text, element.location)
    boxes = []
    for element in root.find_all("object"):
        with bad_items.item():
            boxes.append(_box(element, origin))
    return ImportedImage(index.folder / name, name, boxes, str(file), size)


def _image_name(root: Element, relative: Path, index: records.ImageIndex) -> str:
    """Return the image with the name of an XML file, or otherwise the one named in its <filename>."""
    stem = relative.with_suffix("").as_posix()
    name = index.find_by_stem(stem, root.location)
    element = root.find("filename")
    filename = "" if element is None else element.text.strip()
    if name is None and filename:
        name = index.find((relative.parent / filename).as_posix()) or index.find(filename)
    if name is None:
        alternative = f" or {format_value(filename)}" if filename else ""
        raise UserError(
            f"{root.location}: no image {stem}.*{alternative} in {index.folder}; give the folder by --images"
        )
    return name


def _box(element: Element, origin: int) -> Box:
    bounds = element.require("bndbox")
    sides = [bounds.require(side) for side in SIDES]
    x1, y1, x2, y2 = (records.parse_number(side.text, side.location, side.tag) for side in sides)
    name, location = element.require("name").text, element.require("name").location
    if UNREADABLE in name:
        encoding = 'is not in the encoding of the file; declare it, as in <?xml version="1.0" encoding="gbk"?>'
        raise UserError(f"{location}: the class name {name!r} {encoding}, or save the file as UTF-8")
    corners = records.ordered_corners(x1 - origin, y1 - origin, x2, y2, bounds.location)
    flag = element.find("difficult")
    return Box(
        records.parse_class_name(name, location),
        corners,
        False if flag is None else _flag(flag),
        rotation=_rotation(element),
    )


def _rotation(element: Element) -> float:
    """Return the attribute `rotation` of an object, by which CVAT rotates its box; 0 if it has none."""
    attributes = element.find("attributes")
    for attribute in [] if attributes is None else attributes.find_all("attribute"):
        name, value = attribute.find("name"), attribute.find("value")
        if name is not None and value is not None and name.text.strip() == "rotation":
            with contextlib.suppress(ValueError):  # an attribute of the user's own
                angle = float(value.text)
                return angle if math.isfinite(angle) else 0.0
    return 0.0


def _flag(element: Element) -> bool:
    text = element.text.strip().lower()
    if text not in ("", "0", "1", "false", "true"):
        raise UserError(f"{element.location}: {element.tag} is neither 0 nor 1: {format_value(text)}")
    return text in ("1", "true")
