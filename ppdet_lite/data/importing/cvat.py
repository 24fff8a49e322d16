"""CVAT for images: an XML file for each task or project, with all of its images."""

import math
from collections import Counter
from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.importing import records
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import Box, ImageIndex, ImportedData, ImportedImage
from ppdet_lite.data.importing.splits import split_of_name
from ppdet_lite.data.importing.xml_nodes import Element, read_xml

SHAPES = ("box", "polygon", "ellipse", "mask", "cuboid")  # those with a bounding box
DIFFICULT = "difficult"  # the attribute that CVAT itself exports as VOC's
MIN_POINTS = 3  # of a polygon


def read(source: Path, images: Path | None, bad_items: BadItems) -> ImportedData:
    """Read an XML file, or all of those below a folder.

    images: the image folder; by default images beside the XML file, or its folder. An image has the path `name` in it,
        or in its folder named as the `subset` of the image, or the name of its file in any folder.

    Boxes that are not rotated are boxes; rotated boxes, ellipses, polygons, masks and cuboids are converted to their
    bounding boxes. The attribute `difficult` marks objects as difficult; other attributes and tags are not read. The
    splits are the subsets of a project if all of them are named after splits.

    Raises UserError with file, line and value if something is malformed or a shape has no bounding box.
    """
    imported: list[ImportedImage] = []
    subsets: list[str] = []
    unread: Counter[str] = Counter()
    indices: dict[Path, ImageIndex] = {}
    for file in [source] if source.is_file() else records.files_below(source, ".xml"):
        folder = images or records.existing_folder(file.parent / "images") or file.parent
        with bad_items.item():
            elements = _images(file)
            index = indices.setdefault(folder, ImageIndex(folder))
            for element in elements:
                with bad_items.item():
                    imported.append(_read_image(element, index, bad_items, unread))
                    subsets.append(element.attributes.get("subset", ""))
    splits = [split_of_name(subset) for subset in subsets]
    notes = [f"{what} that are not read: {unread[what]}" for what in unread]
    if None not in splits:
        imported = [image._replace(split=split) for image, split in zip(imported, splits, strict=True)]
    elif any(splits):
        names = ", ".join(
            sorted({repr(subset) for subset, split in zip(subsets, splits, strict=True) if split is None})
        )
        notes.append(f"subsets are not used as splits: {names} is none of train, validation and test")
    files = (index.folder / name for index in indices.values() for name in index.names)
    return ImportedData(imported, notes=(*notes, *records.unlabeled(imported, files, "entry in the XML file")))


def _images(file: Path) -> list[Element]:
    """Return the images of an XML file. Raises UserError if it is of another kind."""
    root = read_xml(file)
    if root.tag != "annotations":
        hint = "; import it with --from voc" if root.tag == "annotation" else ""
        raise UserError(f"{root.location}: <{root.tag}> is not CVAT's <annotations>{hint}")
    track = root.find("track")
    if track is not None:
        raise UserError(f"{track.location}: <track> is of CVAT for video; export the task as CVAT for images")
    if root.find("image") is None:
        raise UserError(f"{root.location}: <annotations> has no <image>; export the task as CVAT for images")
    return root.find_all("image")


def _read_image(element: Element, index: ImageIndex, bad_items: BadItems, unread: Counter[str]) -> ImportedImage:
    """Read one image, and count what is not read."""
    given, size = element.attribute("name").replace("\\", "/"), None
    subset = element.attributes.get("subset")
    name = index.find(f"{subset}/{given}") if subset else None
    name = name or (index.find_below(given, element.location) if given else None)
    if name is None:
        where = f"{format_value(given)} in {index.folder}"
        raise UserError(f"{element.location}: no image {where}; give the folder by --images")
    if {"width", "height"} <= set(element.attributes):
        size = records.parse_size(element.attribute("height"), element.attribute("width"), element.location)
    boxes = []
    for shape in element.children:
        if shape.tag == "tag":
            unread["tags of images"] += 1
            continue
        with bad_items.item():
            boxes.append(_box(shape, unread))
    return ImportedImage(index.folder / name, name, boxes, element.location, size)


def _box(shape: Element, unread: Counter[str]) -> Box:
    if shape.tag not in SHAPES:
        label = f" ({shape.attributes['label']})" if "label" in shape.attributes else ""
        raise UserError(f"{shape.location}: <{shape.tag}>{label} has no box; supported are {', '.join(SHAPES)}")
    name = records.parse_class_name(shape.attribute("label"), shape.location)
    difficult = None
    for attribute in shape.find_all("attribute"):
        key = attribute.attribute("name")
        if key == DIFFICULT:
            difficult = _flag(attribute)
        else:
            unread[f"attributes {format_value(repr(key))} of objects"] += 1
    corners, outline = _corners(shape)
    return Box(name, corners, difficult, outline)


def _corners(shape: Element) -> tuple[tuple[float, float, float, float], str]:
    """Return the corners of the box around a shape, and the kind of outline."""

    def number(name: str) -> float:
        return records.parse_number(shape.attribute(name), shape.location, name)

    angle = math.radians(number("rotation") % 180) if "rotation" in shape.attributes else 0.0
    if shape.tag == "box":
        x1, y1, x2, y2 = records.ordered_corners(
            number("xtl"), number("ytl"), number("xbr"), number("ybr"), shape.location
        )
        if not angle:
            return (x1, y1, x2, y2), "box"
        sin, cos = abs(math.sin(angle)), abs(math.cos(angle))
        w, h = x2 - x1, y2 - y1
        return _around((x1 + x2) / 2, (y1 + y2) / 2, (w * cos + h * sin) / 2, (w * sin + h * cos) / 2), "rotated box"
    if shape.tag == "ellipse":
        rx, ry, sin, cos = number("rx"), number("ry"), math.sin(angle), math.cos(angle)
        return _around(
            number("cx"), number("cy"), math.hypot(rx * cos, ry * sin), math.hypot(rx * sin, ry * cos)
        ), "ellipse"
    if shape.tag == "mask":  # width and height are numbers of pixels
        left, top = number("left"), number("top")
        return records.ordered_corners(
            left, top, left + number("width"), top + number("height"), shape.location
        ), "mask"
    if shape.tag == "cuboid":
        corner_names = [f"{side}{face}" for side in ("tl", "bl", "tr", "br") for face in (1, 2)]
        return records.bounding_box((number(f"x{name}"), number(f"y{name}")) for name in corner_names), "cuboid"
    return records.bounding_box(_points(shape)), "polygon"


def _around(x: float, y: float, half_width: float, half_height: float) -> tuple[float, float, float, float]:
    return x - half_width, y - half_height, x + half_width, y + half_height


def _points(polygon: Element) -> list[tuple[float, float]]:
    text = polygon.attribute("points")
    pairs = [pair.split(",") for pair in text.split(";")]
    if len(pairs) < MIN_POINTS or any(len(pair) != 2 for pair in pairs):
        raise UserError(f"{polygon.location}: points is not x,y;x,y;... of 3 or more points: {format_value(text)}")
    x_y = [[records.parse_number(value, polygon.location, "a coordinate") for value in pair] for pair in pairs]
    return [(x, y) for x, y in x_y]


def _flag(attribute: Element) -> bool:
    text = attribute.text.strip().lower()
    if text not in ("true", "false", "1", "0", ""):
        raise UserError(f"{attribute.location}: {DIFFICULT} is neither true nor false: {format_value(text)}")
    return text in ("true", "1")
