"""The embedded dataset: textured shapes on textured ground in COCO format, drawn by numbers from a seed.

It has what a detection dataset has: category ids with gaps; objects from 16 pixels to half the image, rotated,
sheared, overlapping, cut off at the border; images without objects; crowd regions. Colour is a strong hint of the
class but no proof of it. A small detector learns it from nothing within minutes on a CPU.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.synthetic.painting import background, mask_of, paint, silhouette

CATEGORIES = {3: "ellipse", 7: "rectangle", 11: "triangle", 18: "star", 25: "cross", 44: "ring"}  # id -> name
VERSION = 1  # of the drawing; with another number everybody's copy is stale
SPEC_FILE = "shapes.json"
EMPTY, CROWD = 0.05, 0.02  # shares of images without objects, and (in training) with a crowd region
MIN_SIDE, MIN_VISIBLE = 16, 0.6  # pixels; share of an object that neither border nor other objects may hide


class Item(NamedTuple):
    """One annotated object, or crowd region, of a scene."""

    category: int
    silhouette: np.ndarray  # [H, W] bool, also where something covers it
    visible: np.ndarray  # [H, W] bool
    is_crowd: bool


def generate(folder: str | Path, train: int = 400, val: int = 60, seed: int = 0, size: int = 320) -> bool:
    """Write the dataset unless it is already there; return whether it was written.

    train, val: number of images. size: the longest side in pixels; long sides go down to 0.8 of it, short sides from
    0.8 to 0.6. Image i of a split depends on (seed, split, i, size) alone.
    The folder appears complete or not at all, with annotations/instances_{train,val}.json, train/ and val/.

    A folder generated otherwise is replaced. Raises UserError if it holds anything else.
    """
    folder, found = Path(folder), _spec_of(Path(folder))
    spec = {"version": VERSION, "train": train, "val": val, "seed": seed, "size": size}
    if min(train, val) < 1 or seed < 0 or size < 96:
        raise UserError("shapes: train and val are 1 or more, seed is 0 or more, size is 96 or more")
    if found == spec:
        return False
    if found is None and folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a generated dataset; choose another folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        for number, (split, count) in enumerate({"train": train, "val": val}.items()):
            _write_split(partial, split, [(seed, number, index) for index in range(count)], size)
        (partial / SPEC_FILE).write_text(json.dumps(spec), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # of another specification
        partial.rename(folder)
    except OSError as error:
        if _spec_of(folder) != spec:  # else another process was quicker
            raise UserError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def scene(rng: np.random.Generator, size: int, with_crowd: bool = False) -> tuple[np.ndarray, list[Item]]:
    """Draw one image: RGB uint8 [H, W, 3] and its items from the back to the front.

    with_crowd: the first item is a crowd region, many small objects of one class under a single box.
    """
    long, short = int(rng.uniform(0.8, 1.0) * size), int(rng.uniform(0.6, 0.8) * size)
    shape = (long, short) if rng.random() < 0.4 else (short, long)
    image, items = background(rng, *shape), []
    wanted = 0 if rng.random() < EMPTY else int(rng.integers(1, 7))
    for number in range(wanted):
        category, is_crowd = int(rng.choice(list(CATEGORIES))), with_crowd and number == 0
        for _ in range(10):
            masks = (_crowd_masks if is_crowd else _object_masks)(rng, CATEGORIES[category], shape)
            covered = np.maximum.reduce(masks) > 127 if masks else np.zeros(shape, bool)
            left = [item._replace(visible=item.visible & ~covered) for item in items]
            if covered.any() and all(item.visible.sum() >= MIN_VISIBLE * item.silhouette.sum() for item in left):
                items = [*left, Item(category, covered, covered, is_crowd)]
                for mask in masks:
                    paint(rng, image, CATEGORIES[category], mask)
                break
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), items


def _object_masks(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> list[np.ndarray]:
    """The mask of one object at a random place; no mask if too little of it would be seen."""
    side = np.exp(rng.uniform(np.log(1.5 * MIN_SIDE), np.log(0.5 * max(shape))))
    contours = silhouette(rng, name, side)
    mask = mask_of(contours, rng.uniform(0, 1, 2) * shape[::-1], shape)
    outer, *hole = (cv2.contourArea(contour.astype(np.float32)) for contour in contours)
    seen = mask.sum() / 255 / (outer - sum(hole))
    return [mask] if seen >= MIN_VISIBLE and min(_box(mask > 127)[2:]) >= MIN_SIDE else []


def _crowd_masks(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> list[np.ndarray]:
    """The masks of a cluster of small objects."""
    middle, spread = rng.uniform(0.3, 0.7, 2) * shape[::-1], 0.1 * max(shape)
    return [
        mask_of(silhouette(rng, name, rng.uniform(1, 1.8) * MIN_SIDE), middle + rng.uniform(-spread, spread, 2), shape)
        for _ in range(rng.integers(8, 15))
    ]


def _box(mask: np.ndarray) -> list[int]:
    """The bounding box of a bool mask, xywh."""
    return list(cv2.boundingRect(mask.astype(np.uint8)))


def _write_split(folder: Path, split: str, seeds: list[tuple[int, ...]], size: int) -> None:
    """Write the images and the annotation file of one split."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, seed in enumerate(seeds, start=1):
        rng = np.random.default_rng(seed)
        picture, items = scene(rng, size, with_crowd=split == "train" and rng.random() < CROWD)
        name = f"{image_id:06d}.jpg"
        encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        (folder / split / name).write_bytes(encoded.tobytes())
        images.append({"id": image_id, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
        annotations += [
            {
                "id": number,
                "image_id": image_id,
                "category_id": item.category,
                "bbox": _box(item.silhouette),
                "area": int(item.visible.sum()),
                "iscrowd": int(item.is_crowd),
            }
            for number, item in enumerate(items, start=len(annotations) + 1)
        ]
    categories = [{"id": category, "name": name} for category, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _spec_of(folder: Path) -> dict[str, int] | None:
    """What a folder was generated from, None if it was not."""
    try:
        spec = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return spec if isinstance(spec, dict) and spec.keys() == {"version", "train", "val", "seed", "size"} else None
