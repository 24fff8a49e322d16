"""Divides images into splits: by lists, randomly by fractions, by folders, or as the source assigns them."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import format_value
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import ImportedData, ImportedImage, read_lines

NAMES = ("train", "val", "test")  # of the splits by fractions, in this order
FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
UNDIVIDED = "all"  # the name of the only split of a source that is not divided

Splits = dict[str, list[ImportedImage]]


def parse_fractions(text: str) -> list[float]:
    """Parse fractions such as "0.8/0.2". Raises UserError unless there are two or three positive ones with sum 1."""
    try:
        fractions = [float(part) for part in text.split("/")]
    except ValueError:
        fractions = []
    if len(fractions) not in (2, 3) or min(fractions) <= 0 or not abs(sum(fractions) - 1) < 1e-6:
        raise UserError(f"--split {text}: expected two or three fractions with sum 1, such as 0.8/0.2 (train/val)")
    return fractions


def split(
    data: ImportedData, fractions: Sequence[float] | None, lists: Sequence[Path], seed: int, bad_items: BadItems
) -> tuple[Splits, list[str]]:
    """Divide the images into splits, each sorted by name; return them with messages on what was left out.

    fractions: of images chosen randomly with the seed; images with identical files are in one split.
    lists: files with an image on each line, named as the split; lines that begin with # are comments.
    Without both, the splits are those of the source's own lists, of its files, or of the folders train, val (valid)
    and test; without these, all images are the split "all". Raises UserError for a split without images.
    """
    images = sorted(data.images, key=lambda image: image.name)
    notes: list[str] = []
    if fractions is not None:
        splits, notes = _by_fractions(images, fractions, seed)
    elif lists or data.lists:
        splits, notes = _by_lists(images, lists or data.lists, bad_items)
    elif any(image.split for image in images):
        splits = _grouped(images, [image.split for image in images])
    else:
        folders = [FOLDERS.get(PurePosixPath(image.name).parts[0]) for image in images]
        splits = {UNDIVIDED: images} if None in folders else _grouped(images, folders)
    return splits, notes


def split_of_name(stem: str) -> str | None:
    """Return the split that a file or folder is named after, such as "val" for "validation-boxes"; None if it is none.

    A name that contains several, such as "train_val", is none.
    """
    found = {FOLDERS[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in FOLDERS}
    return found.pop() if len(found) == 1 else None


def _grouped(images: Sequence[ImportedImage], names: Sequence[str | None]) -> Splits:
    return {
        name: [image for image, own in zip(images, names, strict=True) if own == name]
        for name in NAMES
        if name in names
    }


def _by_fractions(images: Sequence[ImportedImage], fractions: Sequence[float], seed: int) -> tuple[Splits, list[str]]:
    """Divide groups of identical images randomly: each is in the split where its first image falls."""
    groups = _identical(images)
    order = [groups[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    starts = np.cumsum([0, *(len(group) for group in order)])[:-1]
    ends = np.rint(np.cumsum(fractions) * len(images)).astype(int)
    split_of_group = np.searchsorted(ends, starts, side="right")
    repeated = sum(len(group) for group in groups if len(group) > 1)
    count = f"images whose file is identical to another's: {repeated} of {len(images)}"
    splits = {}
    for number, name in enumerate(NAMES[: len(fractions)]):
        chosen = [i for group, part in zip(order, split_of_group, strict=True) if part == number for i in group]
        if not chosen:
            reason = f"; {count}, which stay in one split" if repeated else ""
            raise UserError(f"--split: no image of {len(images)} is left for {name}; choose other fractions{reason}")
        splits[name] = [images[i] for i in sorted(chosen)]
    return splits, [f"{count}; those with the same content are in one split"] if repeated else []


def _identical(images: Sequence[ImportedImage]) -> list[list[int]]:
    """Return the indices of the images, grouped by the content of their files; only files of equal size are read."""
    sizes = [image.file.stat().st_size for image in images]
    counts = Counter(sizes)
    groups: dict[object, list[int]] = {}
    for number, (image, size) in enumerate(zip(images, sizes, strict=True)):
        content = hashlib.blake2b(image.file.read_bytes(), digest_size=16).digest() if counts[size] > 1 else None
        groups.setdefault((size, content), []).append(number)
    return list(groups.values())


def _by_lists(images: Sequence[ImportedImage], lists: Sequence[Path], bad_items: BadItems) -> tuple[Splits, list[str]]:
    index = _index_by_name(images)
    splits: Splits = {}
    taken: dict[int, str] = {}
    for path in lists:
        if path.stem in splits:
            raise UserError(f"{path}: two lists are named {path.stem}; each list needs the name of its split")
        chosen = []
        for location, line in read_lines(path):
            if line.startswith("#") and line not in index:
                continue
            with bad_items.item():
                number = _find(line, index, location)
                if number in taken:
                    raise UserError(
                        f"{location}: {format_value(line)} is already in {taken[number]}; list it once, in one split"
                    )
                taken[number] = location
                chosen.append(number)
        if not chosen:
            raise UserError(f"{path}: lists no images{bad_items.remark()}")
        splits[path.stem] = [images[number] for number in sorted(chosen)]
    left = len(images) - len(taken)
    return splits, [f"annotated images in no list: {left} of {len(images)}; left out"] if left else []


def _index_by_name(images: Sequence[ImportedImage]) -> dict[str, set[int]]:
    """Return the indices of images by their names in lists: path or file name, each with or without suffix."""
    index: dict[str, set[int]] = {}
    for number, image in enumerate(images):
        path = PurePosixPath(image.name)
        for name in {path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem}:
            index.setdefault(name, set()).add(number)
    return index


def _find(line: str, index: dict[str, set[int]], location: str) -> int:
    path = PurePosixPath(line.replace("\\", "/"))
    numbers = index.get(path.as_posix()) or index.get(path.name) or set()
    if len(numbers) != 1:
        fault = "is not an annotated image" if not numbers else f"matches {len(numbers)} images; add the folder"
        raise UserError(f"{location}: {format_value(line)} {fault}")
    return next(iter(numbers))
