"""What a YOLO data set says of itself: the names of its classes and, in a data.yaml, where its images are."""

from collections.abc import Iterator
from pathlib import Path

from ppdet_lite.config.yaml_nodes import Node, parse, plain
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import shown
from ppdet_lite.data.images.files import ImageFiles
from ppdet_lite.data.importing.records import class_name, is_image_name, lines_of, read_text

CONFIGS, NAMES = ("data.yaml", "data.yml"), ("classes.txt", "labels/classes.txt", "obj.names")
SPLITS = ("train", "val", "test")


def names_of_list(source: Path) -> list[str]:
    """The class names of a folder with classes.txt. Raises UserError where there is none."""
    path = next((source / name for name in NAMES if (source / name).is_file()), None)
    if path is None:
        raise UserError(f"{source}: has neither {CONFIGS[0]} nor {NAMES[0]}; write one, a class name on each line")
    return _distinct([(class_name(line, place), place) for place, line in lines_of(path)], str(path))


def read_config(path: Path) -> tuple[list[str], list[tuple[Path, str, str]], list[str]]:
    """Class names, images with their names and splits (none if it names none), and notes of a data.yaml."""
    content = parse(read_text(path), lambda line: f"{path}:{line}")
    keys = content.value if isinstance(content.value, dict) else {}
    if "names" not in keys:
        raise UserError(f"{content.origin}: has no names of classes")
    names = _names(keys["names"])
    if "nc" in keys and keys["nc"].value != len(names):
        raise UserError(f"{keys['nc'].origin}: nc is {shown(plain(keys['nc']))}, but there are {len(names)} names")
    root = keys["path"].value if "path" in keys and isinstance(keys["path"].value, str) else ""
    files: list[tuple[Path, str, str]] = []
    notes = []
    for split in SPLITS:
        if split not in keys or keys[split].value in (None, ""):
            continue
        entry = keys[split]
        for node in entry.value if isinstance(entry.value, list) else [entry]:
            place = _resolve(node, path.parent, root)
            if place is not None:
                files += [(file, name, split) for file, name in _images_at(place)]
            elif split == "test":  # exports name one that they do not hold
                notes.append(f"{node.origin}: test: {shown(node.value)} is not there: left out")
            else:
                raise UserError(f"{node.origin}: {split}: {shown(node.value)} is not there; correct the path")
    return names, files, notes


def _names(node: Node) -> list[str]:
    """The class names, a list or a mapping from 0, 1, ..."""
    items = node.value
    if isinstance(items, dict):
        if set(items) != {str(k) for k in range(len(items))}:
            raise UserError(
                f"{node.origin}: names are numbered {shown(', '.join(items))}; expected 0 to {len(items) - 1}"
            )
        items = [items[str(k)] for k in range(len(items))]
    if not isinstance(items, list) or not items:
        raise UserError(f"{node.origin}: names is no list of class names")
    found = []
    for item in items:
        if isinstance(item.value, (dict, list)) or item.value is None:
            raise UserError(f"{item.origin}: a class name is no text")
        found.append((class_name(str(item.value), item.origin), item.origin))
    return _distinct(found, node.origin)


def _distinct(names: list[tuple[str, str]], where: str) -> list[str]:
    if not names:
        raise UserError(f"{where}: holds no class name")
    seen: set[str] = set()
    for name, place in names:
        if name in seen:
            raise UserError(f"{place}: the class {name!r} is there twice")
        seen.add(name)
    return [name for name, _ in names]


def _resolve(node: Node, folder: Path, root: str) -> Path | None:
    """Where an entry of a data.yaml is; exporters write ../train/images of a folder that is beside the file."""
    if not isinstance(node.value, str):
        raise UserError(f"{node.origin}: no path: {shown(plain(node))}")
    inner = node.value
    while inner.startswith("../"):
        inner = inner[3:]
    tries = [folder / root / node.value, folder / node.value, folder / inner]
    return next((place for place in tries if place.exists()), None)


def _images_at(place: Path) -> Iterator[tuple[Path, str]]:
    """The images of a folder, or of a text file that lists them, with their relative names."""
    if place.is_dir():
        yield from ((place / name, name) for name in ImageFiles.find(place).names)
        return
    for where, line in lines_of(place):
        path = place.parent / line
        if not path.is_file() or not is_image_name(path.name):
            raise UserError(f"{where}: no image {shown(line)}, looked for at {shown(str(path))}")
        yield path, path.name
