"""Which images belong to which split: by lists, by shares at random, by folders, or as the source says."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.problems import shown
from ppdet_lite.data.importing.records import Found, Picture, lines_of

SHARED = ("train", "val", "test")  # the names of shares, in their order
FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
WHOLE = "all"  # the one split of a source that is not divided

Splits = dict[str, list[Picture]]


def parse_shares(text: str) -> list[float]:
    """The shares of "0.8/0.2". Raises UserError unless they are two or three, above 0 and 1 together."""
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError:
        shares = []
    if len(shares) not in (2, 3) or min(shares) <= 0 or not abs(sum(shares) - 1) < 1e-6:
        raise UserError(
            f"--split {text}: expected two or three shares that are 1 together, such as 0.8/0.2 (train/val)"
        )
    return shares


def split(found: Found, shares: Sequence[float] | None, lists: Sequence[Path], seed: int) -> tuple[Splits, list[str]]:
    """Divide the images, each split in the order of names; also what was left out, in words.

    shares: of images drawn at random from the seed. lists: a file with an image on each line, named as its split.
    Without both it goes by the source's own lists, by what its files say, or by folders train, val (valid), test;
    where there is none of these, all images are the split "all". Raises UserError for a split without images.
    """
    pictures, notes = sorted(found.pictures, key=lambda picture: picture.name), []
    if shares is not None:
        splits = _by_shares(pictures, shares, seed)
    elif lists or found.lists:
        splits, notes = _by_lists(pictures, lists or found.lists)
    elif any(picture.split for picture in pictures):
        splits = _grouped(pictures, [picture.split for picture in pictures])
    else:
        folders = [FOLDERS.get(PurePosixPath(picture.name).parts[0]) for picture in pictures]
        splits = {WHOLE: pictures} if None in folders else _grouped(pictures, folders)
    return splits, notes


def _grouped(pictures: Sequence[Picture], names: Sequence[str]) -> Splits:
    return {
        name: [picture for picture, own in zip(pictures, names, strict=True) if own == name]
        for name in SHARED
        if name in names
    }


def _by_shares(pictures: Sequence[Picture], shares: Sequence[float], seed: int) -> Splits:
    order = np.random.default_rng(seed).permutation(len(pictures))
    ends = np.rint(np.cumsum([0, *shares]) * len(pictures)).astype(int)
    splits = {
        name: [pictures[i] for i in sorted(order[start:end].tolist())]
        for name, start, end in zip(SHARED, ends[:-1], ends[1:])
    }
    for name, chosen in splits.items():
        if not chosen:
            raise UserError(f"--split: no image is left for {name} of {len(pictures)} images; choose other shares")
    return splits


def _by_lists(pictures: Sequence[Picture], lists: Sequence[Path]) -> tuple[Splits, list[str]]:
    known = _names(pictures)
    splits: Splits = {}
    taken: dict[int, str] = {}
    for path in lists:
        if path.stem in splits:
            raise UserError(f"{path}: two lists are named {path.stem}; the name of a list is that of its split")
        chosen = []
        for place, line in lines_of(path):
            number = _find(line, known, place)
            if number in taken:
                raise UserError(
                    f"{place}: {shown(line)} is in {taken[number]} already; an image belongs to one split, once"
                )
            taken[number] = place
            chosen.append(number)
        if not chosen:
            raise UserError(f"{path}: lists no image")
        splits[path.stem] = [pictures[number] for number in sorted(chosen)]
    left = len(pictures) - len(taken)
    return splits, [f"{left} of {len(pictures)} annotated images are in no list: left out"] if left else []


def _names(pictures: Sequence[Picture]) -> dict[str, set[int]]:
    """What a list may call an image: its path or its file name, each with or without the suffix."""
    known: dict[str, set[int]] = {}
    for number, picture in enumerate(pictures):
        path = PurePosixPath(picture.name)
        for name in {path.as_posix(), path.with_suffix("").as_posix(), path.name, path.stem}:
            known.setdefault(name, set()).add(number)
    return known


def _find(line: str, known: dict[str, set[int]], place: str) -> int:
    path = PurePosixPath(line.replace("\\", "/"))
    numbers = known.get(path.as_posix()) or known.get(path.name) or set()
    if len(numbers) != 1:
        what = "is no annotated image" if not numbers else f"is the name of {len(numbers)} images; give the folder too"
        raise UserError(f"{place}: {shown(line)} {what}")
    return next(iter(numbers))
