"""What is wrong with the image files of a data set: each one is read whole and decoded."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.core.runtime import usable_cores
from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.objects import extents
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at
from ppdet_lite.data.images.decoding import decode
from ppdet_lite.data.images.sizes import MENDED, compare, elsewhere, with_slashes


class Look(NamedTuple):
    """What a look at an image file tells."""

    digest: str | None  # of its content; None where there is no such file
    size: tuple[int, int] | None = None  # (h, w) as shown; None where it cannot be decoded
    error: str = ""  # why not


def look_at(paths: Sequence[str]) -> list[Look]:
    """Read and decode image files, on all cores."""
    from tqdm import tqdm

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(tqdm(pool.map(_look, paths), "images", len(paths), file=sys.stderr, disable=None, leave=False))


def _look(path: str) -> Look:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return Look(None, error=error.strerror or str(error))
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        return Look(digest, decode(content).shape[:2])
    except ValueError as error:
        return Look(digest, error=str(error))


class ImageCheck(NamedTuple):
    """What is wrong with the image files of a data set, and what is known of their sizes."""

    problems: list[Problem]
    names: list[str]  # [I] of the files, below the image folder
    sizes: np.ndarray  # [I, 2] (h, w) as annotated, those that were swapped as they are
    doubtful: np.ndarray  # [I] bool, annotated with a size that is not the file's


def check_image_files(dataset: CocoDataset, content: CocoFile, looks: Sequence[Look]) -> ImageCheck:
    """Compare a data set with its files, one look for each of its images."""
    infos = [dataset.info(i) for i in range(len(dataset))]
    names, annotations = with_slashes(dataset.images, content.file_names)[0], content.annotations

    def at(kind: str, rows: Any, value: Any = lambda row: None) -> list[Problem]:
        return problems_at(
            kind, rows, len(infos), lambda row: Example(image=infos[row].id, file=names[row], value=value(row))
        )

    def tried(row: int) -> dict[str, str]:
        other = elsewhere(dataset.images, names[row])
        return {"tried": infos[row].path} | ({} if other is None else {"it is at": other})

    missing = np.array([look.digest is None for look in looks])
    damaged = np.array([look.size is None for look in looks]) & ~missing
    problems = at("file_missing", missing, tried) + at("image_damaged", damaged, lambda row: looks[row].error)
    reach = extents(annotations.xywh, annotations.image_ids, dataset.image_ids)
    good = np.flatnonzero(~missing & ~damaged)
    found, kinds = compare([infos[row].path for row in good], dataset.sizes[good], reach[good])
    sizes, doubtful = dataset.sizes.copy(), np.zeros(len(infos), bool)
    actual = dict(zip(good.tolist(), found.tolist(), strict=True))

    def differing(row: int) -> dict[str, Any]:
        height, width = actual[row]
        return {"width": infos[row].width, "height": infos[row].height, "file": f"{width}x{height}"}

    for kind, places in kinds.items():
        problems += at(kind, good[places], differing)
        if kind in MENDED:
            sizes[good[places]] = found[places]
        else:
            doubtful[good[places]] = True
    first = {row: other for row, other in _repeated([look.digest for look in looks]) if names[row] != names[other]}
    problems += at("content_twice", sorted(first), lambda row: {"as": names[first[row]]})
    return ImageCheck(problems, names, sizes, doubtful)


def shared_images(
    one: CocoDataset, its_looks: Sequence[Look], others: Sequence[tuple[CocoDataset, Sequence[Look]]]
) -> list[Problem]:
    """The images of a data set whose content is in others too."""
    there: dict[str, str] = {}
    for dataset, looks in others:
        for row, look in enumerate(looks):
            if look.digest is not None:
                there.setdefault(look.digest, dataset.info(row).path)

    def example(row: int) -> Example:
        info = one.info(row)
        return Example(image=info.id, file=info.path, value={"as": there[its_looks[row].digest]})

    return problems_at(
        "content_in_both", [r for r, look in enumerate(its_looks) if look.digest in there], len(one), example
    )


def _repeated(digests: Sequence[str | None]) -> Iterator[tuple[int, int]]:
    """The places of contents that were there before, each with the first such place."""
    first: dict[str, int] = {}
    for row, digest in enumerate(digests):
        if digest is not None and first.setdefault(digest, row) != row:
            yield row, first[digest]
