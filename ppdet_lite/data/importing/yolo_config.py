"""Reads the class names of a YOLO dataset and, from a data.yaml, the locations of its images."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ppdet_lite.config.yaml_nodes import Node, parse, plain
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.other_formats import CLASS_LISTS, CONFIGS
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.images.files import ImageFiles
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import is_image_name, parse_class_name, read_lines, read_text

SPLITS = ("train", "val", "test")


class YoloConfig(NamedTuple):
    """The content of a data.yaml or classes.txt."""

    class_names: list[str]
    images: Sequence[tuple[Path, str, str]] = ()  # path, name and split, if the file lists any
    keypoints: tuple[int, int] | None = None  # their number and values per keypoint, in pose datasets
    notes: tuple[str, ...] = ()


def read_class_list(source: Path) -> YoloConfig:
    """Return the class names of a folder with classes.txt. Raises UserError if there is no such file."""
    path = next((source / name for name in CLASS_LISTS if (source / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{source}: has neither {CONFIGS[0]} nor {CLASS_LISTS[0]}; write one, a class name on each line"
        )
    names = []
    for location, line in read_lines(path):
        if line.startswith("#"):  # counted as a class by some programs and not by others
            raise UserError(f"{location}: {format_value(line)} is a comment or a class; remove it, or use a data.yaml")
        names.append((parse_class_name(line, location), location))
    return YoloConfig(_distinct(names, str(path)))


def read_config(path: Path, bad_items: BadItems) -> YoloConfig:
    """Return the content of a data.yaml."""
    content = parse(read_text(path), lambda line: f"{path}:{line}")
    keys = content.value if isinstance(content.value, dict) else {}
    if "names" not in keys:
        raise UserError(f"{content.origin}: `names`, the class names, is missing")
    names = _names(keys["names"])
    if "nc" in keys and keys["nc"].value != len(names):
        nc = format_value(plain(keys["nc"]))
        raise UserError(f"{keys['nc'].origin}: nc is {nc}, but names has {len(names)} entries")
    root = keys["path"].value if "path" in keys and isinstance(keys["path"].value, str) else ""
    files: list[tuple[Path, str, str]] = []
    notes = []
    for split in SPLITS:
        if split not in keys or keys[split].value in (None, ""):
            continue
        entry = keys[split]
        for node in entry.value if isinstance(entry.value, list) else [entry]:
            target = _resolve(node, path.parent, root)
            if target is not None:
                files += [(file, name, split) for file, name in _images_at(target, bad_items)]
            elif split == "test":  # exported datasets may list a test split that they do not contain
                notes.append(f"{node.origin}: test: {format_value(node.value)} does not exist: left out")
            else:
                raise UserError(f"{node.origin}: {split}: {format_value(node.value)} does not exist; correct the path")
    keypoints = _keypoints(keys["kpt_shape"]) if "kpt_shape" in keys else None
    return YoloConfig(names, files, keypoints, tuple(notes))


def _keypoints(node: Node) -> tuple[int, int]:
    """Return the number of keypoints and the values of each: x, y and, if there are three, the visibility."""
    value = plain(node)
    if not isinstance(value, list) or len(value) != 2 or type(value[0]) is not int or value[1] not in (2, 3):
        raise UserError(f"{node.origin}: kpt_shape is not [number of keypoints, 2 or 3]: {format_value(value)}")
    return value[0], value[1]


def _names(node: Node) -> list[str]:
    """Return the class names, from a list or a mapping with the keys 0, 1, ..."""
    items = node.value
    if isinstance(items, dict):
        if set(items) != {str(k) for k in range(len(items))}:
            numbers = format_value(", ".join(items))
            raise UserError(f"{node.origin}: names are numbered {numbers}; expected 0 to {len(items) - 1}")
        items = [items[str(k)] for k in range(len(items))]
    if not isinstance(items, list) or not items:
        raise UserError(f"{node.origin}: names is not a list of class names")
    names = []
    for item in items:
        if isinstance(item.value, (dict, list)) or item.value is None:
            raise UserError(f"{item.origin}: a class name is not text")
        names.append((parse_class_name(str(item.value), item.origin), item.origin))
    return _distinct(names, node.origin)


def _distinct(names: list[tuple[str, str]], origin: str) -> list[str]:
    """Return the names of (name, location) pairs. Raises UserError if there are none or one is repeated."""
    if not names:
        raise UserError(f"{origin}: contains no class names")
    seen: set[str] = set()
    for name, location in names:
        if name in seen:
            raise UserError(f"{location}: the class {name!r} is repeated")
        seen.add(name)
    return [name for name, _ in names]


def _resolve(node: Node, folder: Path, root: str) -> Path | None:
    """Return the path of an entry of a data.yaml; some exporters write ../train/images for a folder beside the file."""
    if not isinstance(node.value, str):
        raise UserError(f"{node.origin}: not a path: {format_value(plain(node))}")
    inner = node.value
    while inner.startswith("../"):
        inner = inner[3:]
    candidates = [folder / root / node.value, folder / node.value, folder / inner]
    return next((path for path in candidates if os.path.exists(path)), None)


def _images_at(source: Path, bad_items: BadItems) -> Iterator[tuple[Path, str]]:
    """Yield (path, name) of the images in a folder, or of those listed in a text file, where # begins a comment."""
    if source.is_dir():
        yield from ((source / name, name) for name in ImageFiles.find(source).names)
        return
    for location, line in read_lines(source):
        path = source.parent / line
        if os.path.isfile(path) and is_image_name(path.name):
            yield path, path.name
        elif not line.startswith("#"):
            with bad_items.item():
                raise UserError(f"{location}: no image {format_value(line)}, expected at {format_value(str(path))}")
