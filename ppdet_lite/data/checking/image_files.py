"""Check of the image files of a dataset. Every file is read and decoded completely."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.core.runtime import usable_cores
from ppdet_lite.data.annotations.coco_content import CocoFile
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.objects import box_extents
from ppdet_lite.data.annotations.problems import Example, Problem, problems_at
from ppdet_lite.data.images.decoding import decode
from ppdet_lite.data.images.sizes import CORRECTED, compare_sizes, replace_backslashes, searched_paths


class Inspection(NamedTuple):
    """The result of reading and decoding an image file."""

    digest: str | None  # hash of the content; None if the file cannot be read
    size: tuple[int, int] | None = None  # (h, w) after the EXIF rotation; None if it cannot be decoded
    error: str = ""  # why it cannot be read or decoded


def inspect_files(paths: Sequence[str]) -> list[Inspection]:
    """Read and decode image files, in parallel on all cores."""
    from tqdm import tqdm

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(tqdm(pool.map(_inspect, paths), "images", len(paths), file=sys.stderr, disable=None, leave=False))


def _inspect(path: str) -> Inspection:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return Inspection(None, error=error.strerror or str(error))
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    try:
        return Inspection(digest, decode(content, path).shape[:2])
    except ValueError as error:
        return Inspection(digest, error=str(error))


class ImageCheck(NamedTuple):
    """Problems of the image files of a dataset, and the sizes of its images."""

    problems: list[Problem]
    names: list[str]  # [I] paths relative to the image folder
    sizes: np.ndarray  # [I, 2] (h, w) as annotated, except for missing or swapped sizes, which come from the files
    size_differs: np.ndarray  # [I] bool, the annotated size is neither the file's nor corrected


def check_image_files(dataset: CocoDataset, content: CocoFile, inspections: Sequence[Inspection]) -> ImageCheck:
    """Compare a dataset with the inspections of its image files, one per image."""
    infos = [dataset.info(i) for i in range(len(dataset))]
    names, annotations = replace_backslashes(dataset.images, content.file_names)[0], content.annotations

    def problems_of(kind: str, rows: Any, value: Any = lambda row: None) -> list[Problem]:
        return problems_at(
            kind, rows, len(infos), lambda row: Example(image=infos[row].id, file=names[row], value=value(row))
        )

    missing = np.array([inspection.digest is None for inspection in inspections])
    damaged = np.array([inspection.size is None for inspection in inspections]) & ~missing
    problems = problems_of("file_missing", missing, lambda row: searched_paths(dataset.images, names[row]))
    problems += problems_of("image_damaged", damaged, lambda row: inspections[row].error)
    extents = box_extents(annotations.xywh, annotations.image_ids, dataset.image_ids)
    good = np.flatnonzero(~missing & ~damaged)
    file_sizes, kinds = compare_sizes([infos[row].path for row in good], dataset.sizes[good], extents[good])
    sizes, size_differs = dataset.sizes.copy(), np.zeros(len(infos), bool)
    actual = dict(zip(good.tolist(), file_sizes.tolist(), strict=True))

    def both_sizes(row: int) -> dict[str, Any]:
        height, width = actual[row]
        return {"width": infos[row].width, "height": infos[row].height, "file": f"{width}x{height}"}

    for kind, positions in kinds.items():
        problems += problems_of(kind, good[positions], both_sizes)
        if kind in CORRECTED:
            sizes[good[positions]] = file_sizes[positions]
        else:
            size_differs[good[positions]] = True
    repeated = _repeated([inspection.digest for inspection in inspections])
    original = {row: first for row, first in repeated if names[row] != names[first]}
    problems += problems_of(
        "content_twice",
        sorted(original),
        lambda row: {"as": names[original[row]], "boxes": _compare_boxes((dataset, row), (dataset, original[row]))},
    )
    return ImageCheck(problems, names, sizes, size_differs)


def shared_images(
    dataset: CocoDataset,
    inspections: Sequence[Inspection],
    others: Sequence[tuple[CocoDataset, Sequence[Inspection]]],
) -> list[Problem]:
    """Return the problem of the images of a dataset whose file content also occurs in other datasets."""
    images: dict[str, tuple[CocoDataset, int]] = {}
    for other, other_inspections in others:
        for row, inspection in enumerate(other_inspections):
            if inspection.digest is not None:
                images.setdefault(inspection.digest, (other, row))

    def example(row: int) -> Example:
        info, (other, other_row) = dataset.info(row), images[inspections[row].digest or ""]
        boxes = _compare_boxes((dataset, row), (other, other_row))
        return Example(image=info.id, file=info.path, value={"as": other.info(other_row).path, "boxes": boxes})

    rows = [row for row, inspection in enumerate(inspections) if inspection.digest in images]
    return problems_at("content_in_both", rows, len(dataset), example)


def _compare_boxes(*images: tuple[CocoDataset, int]) -> str:
    """Return whether two images, given by dataset and row, have the same boxes of the same classes: a word."""
    boxes = []
    for dataset, row in images:
        objects = dataset.annotations(row)
        names = [dataset.class_names[k] for k in objects.classes.tolist()]
        boxes.append(sorted(zip(names, objects.boxes.tolist(), objects.is_crowd.tolist(), strict=True)))
    return "the same" if boxes[0] == boxes[1] else "different"


def _repeated(digests: Sequence[str | None]) -> Iterator[tuple[int, int]]:
    """Yield the rows whose digest occurred before, each with the first row that has it."""
    first_rows: dict[str, int] = {}
    for row, digest in enumerate(digests):
        if digest is not None and first_rows.setdefault(digest, row) != row:
            yield row, first_rows[digest]
