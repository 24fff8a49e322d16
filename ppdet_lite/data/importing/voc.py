"""Pascal VOC: an XML file for each image, and lists of images in ImageSets/Main."""

from pathlib import Path

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import shown
from ppdet_lite.data.importing.records import (
    Box,
    Found,
    Images,
    Picture,
    class_name,
    existing_folder,
    files_below,
    number,
    ordered_corners,
    size_of,
)
from ppdet_lite.data.importing.xml_nodes import Element, read_xml

ANNOTATIONS = "Annotations"
SIDES = ("xmin", "ymin", "xmax", "ymax")


def read(source: Path, images: Path | None = None, origin: int = 0) -> Found:
    """Read a VOC tree, by itself or by its Annotations, or a folder with XML files.

    images: where the images are; otherwise in JPEGImages or images of the source, or beside the XML files. An image is
        the one with the XML file's name, or else the one that it names.
    origin: 0 for corners as they are, xmax - xmin wide; 1 for the VOC challenges' own pixels, which are counted from 1
        and belong to the box, so that it goes from xmin - 1 to xmax.

    Raises UserError with file, line and value for what is malformed.
    """
    if source.name == ANNOTATIONS:
        source = source.parent
    annotations = existing_folder(source / ANNOTATIONS) or source
    files = files_below(annotations, ".xml")
    folder = images or existing_folder(source / "JPEGImages", source / "images") or source
    known = Images(folder)
    pictures = [_picture(file, file.relative_to(annotations), known, origin) for file in files]
    extra = len(set(known.names) - {picture.name for picture in pictures})
    notes = (f"{extra} of {len(known.names)} images in {folder} have no XML file: left out",) if extra else ()
    return Found(pictures, None, _lists(source / "ImageSets" / "Main"), notes)


def _lists(folder: Path) -> tuple[Path, ...]:
    """The lists of train, val and test; trainval.txt is the first two together and counts where they are missing."""
    lists = [folder / f"{split}.txt" for split in ("train", "val", "test")]
    if not (lists[0].is_file() or lists[1].is_file()):
        lists[0] = folder / "trainval.txt"
    return tuple(path for path in lists if path.is_file())


def _picture(file: Path, relative: Path, known: Images, origin: int) -> Picture:
    root = read_xml(file)
    if root.tag != "annotation":
        raise UserError(f"{root.place}: <{root.tag}> is not VOC's <annotation>")
    name = _image(root, relative, known)
    size = root.find("size")
    said = None
    if size is not None:
        said = size_of(size.need("height").text, size.need("width").text, size.place)
    boxes = [_box(element, origin) for element in root.all("object")]
    return Picture(known.folder / name, name, boxes, str(file), said)


def _image(root: Element, relative: Path, known: Images) -> str:
    """The image of an XML file, by that file's name or by what it says."""
    stem = relative.with_suffix("").as_posix()
    name = known.without_suffix(stem, root.place)
    named = root.find("filename")
    said = "" if named is None else named.text.strip()
    if name is None and said:
        beside = (relative.parent / said).as_posix()
        name = known.named(beside) or known.named(said)
    if name is None:
        also = f", nor {shown(said)}" if said else ""
        raise UserError(f"{root.place}: no image {stem}.* in {known.folder}{also}; give the folder by --images")
    return name


def _box(element: Element, origin: int) -> Box:
    bounds = element.need("bndbox")
    sides = [bounds.need(side) for side in SIDES]
    x1, y1, x2, y2 = (number(side.text, side.place, side.tag) for side in sides)
    name = class_name(element.need("name").text, element.need("name").place)
    corners = ordered_corners(x1 - origin, y1 - origin, x2, y2, bounds.place)
    flag = element.find("difficult")
    return Box(name, corners, False if flag is None else _flag(flag))


def _flag(element: Element) -> bool:
    text = element.text.strip().lower()
    if text not in ("", "0", "1", "false", "true"):
        raise UserError(f"{element.place}: {element.tag} is neither 0 nor 1: {shown(text)}")
    return text in ("1", "true")
