"""A synthetic dataset: textured shapes on textured backgrounds in COCO format, generated from a seed.

It has the properties of a real detection dataset: category ids with gaps; objects from 16 pixels to half the image,
rotated, sheared, overlapping and truncated at the border; images without objects; crowd regions. Color correlates with
the class but does not determine it. A small detector trained from scratch learns it within minutes on a CPU.

Two variants are for experiments. In `deformed`, shapes are stretched up to 1:4, sheared and bent. In `context`, what is
around an object misleads: see `context_scene`.
"""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.synthetic.painting import background, disc, draw_mask, hue_of, paint, silhouette

CATEGORIES = {3: "ellipse", 7: "rectangle", 11: "triangle", 18: "star", 25: "cross", 44: "ring"}  # id -> name
VERSION = 1  # version of the generator; changing it makes existing copies outdated
SPEC_FILE = "shapes.json"
EMPTY_FRACTION, CROWD_FRACTION = 0.05, 0.02  # of images without objects, and (only in training) with a crowd region
MIN_SIDE = 16  # pixels
MIN_VISIBLE = 0.6  # fraction of an object that must be visible, both inside the border and under later objects
AGREEMENT = 0.95  # probability that the companions of a training object have the hue of its class; see `context_scene`

Variant = Literal["plain", "deformed", "context"]


class Item(NamedTuple):
    """One annotated object or crowd region of a scene."""

    category: int
    silhouette: np.ndarray  # [H, W] bool, including covered parts
    visible: np.ndarray  # [H, W] bool
    is_crowd: bool
    companion: int | None = None  # category whose hue its companions have; see `context_scene`


def generate(
    folder: str | Path, train: int = 400, val: int = 60, seed: int = 0, size: int = 320, variant: Variant = "plain"
) -> bool:
    """Write the dataset to a folder unless it already exists there; return whether it was written.

    The folder contains annotations/instances_{train,val}.json, train/ and val/, and appears complete or not at all.
    A dataset generated with other arguments is replaced. Image i of a split depends only on (seed, split, i, size).

    train, val: number of images.
    size: maximum length of the long side in pixels. Long sides are 0.8 to 1 times the size, short sides 0.6 to 0.8.
    variant: see above. `context` has a third split, val_agreeing: the images of val with companions as in train.

    Raises UserError if an argument is out of range, the folder contains anything else, or it cannot be written.
    """
    folder, existing = Path(folder), _read_spec(Path(folder))
    spec = {"version": VERSION, "train": train, "val": val, "seed": seed, "size": size, "variant": variant}
    if min(train, val) < 1 or seed < 0 or size < 96:
        raise UserError("shapes: train and val must be at least 1, seed at least 0, size at least 96")
    if existing == spec:
        return False
    if existing is None and folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a generated dataset; choose another folder")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        for number, (split, count) in enumerate({"train": train, "val": val}.items()):
            seeds = [(seed, number, index) for index in range(count)]
            _write_split(partial, split, seeds, size, variant)
            if variant == "context" and split == "val":
                _write_split(partial, "val_agreeing", seeds, size, variant)
        (partial / SPEC_FILE).write_text(json.dumps(spec), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a dataset generated with other arguments
        partial.rename(folder)
    except OSError as error:
        if _read_spec(folder) != spec:  # otherwise another process has written the same dataset
            raise UserError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def scene(
    rng: np.random.Generator, size: int, with_crowd: bool = False, deformed: bool = False
) -> tuple[np.ndarray, list[Item]]:
    """Generate one image, RGB uint8 [H, W, 3], and its items, ordered from back to front.

    with_crowd: the first item is a crowd region: many small objects of one class with a single box.
    """
    shape = _random_shape(rng, size)
    image = background(rng, *shape)
    items: list[Item] = []
    count = 0 if rng.random() < EMPTY_FRACTION else int(rng.integers(1, 7))
    for number in range(count):
        category, is_crowd = int(rng.choice(list(CATEGORIES))), with_crowd and number == 0
        for _ in range(10):
            masks = (_crowd_masks if is_crowd else _object_masks)(rng, CATEGORIES[category], shape, deformed)
            covered = np.maximum.reduce(masks) > 127 if masks else np.zeros(shape, bool)
            others = [item._replace(visible=item.visible & ~covered) for item in items]
            if covered.any() and all(item.visible.sum() >= MIN_VISIBLE * item.silhouette.sum() for item in others):
                items = [*others, Item(category, covered, covered, is_crowd)]
                for mask in masks:
                    paint(rng, image, hue_of(rng, CATEGORIES[category]), mask)
                break
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), items


def context_scene(rng: np.random.Generator, size: int, agreement: float) -> tuple[np.ndarray, list[Item]]:
    """Generate one image and its items, each of which has two companions: discs at opposite sides of its box.

    The hue of an object does not depend on its class. That of its companions is the hue of its class with the
    probability `agreement`, else that of another class. Only the shape inside the box determines the class; a detector
    that uses the surroundings is right as long as the companions agree. Nothing overlaps.
    """
    shape = _random_shape(rng, size)
    image, items = background(rng, *shape), []
    taken: np.ndarray = np.zeros(shape, bool)
    for _ in range(rng.integers(2, 5)):
        category = int(rng.choice(list(CATEGORIES)))
        others = [other for other in CATEGORIES if other != category]
        agrees, other = rng.random() < agreement, int(rng.choice(others))
        companion = category if agrees else other
        for _ in range(20):
            side = rng.uniform(0.15, 0.35) * max(shape)
            masks = _object_with_companions(rng, CATEGORIES[category], side, shape)
            areas = np.array([taken, *map(_box_mask, masks)])
            if masks and areas.sum(axis=0).max() == 1:
                taken = np.any(areas, axis=0)
                paint(rng, image, rng.uniform(0, 360), masks[0])
                for mask in masks[1:]:
                    paint(rng, image, hue_of(rng, CATEGORIES[companion]), mask)
                visible = masks[0] > 127
                items.append(Item(category, visible, visible, False, companion))
                break
    return np.clip(image + 0.5, 0, 255).astype(np.uint8), items


def _object_with_companions(
    rng: np.random.Generator, name: str, side: float, shape: tuple[int, int]
) -> list[np.ndarray]:
    """Return the masks of an object and of its two companions, or none if one of them is not whole."""
    contours, radius = silhouette(rng, name, side), rng.uniform(0.15, 0.25) * side
    center = rng.uniform(0, 1, 2) * shape[::-1]
    axis, gap = int(rng.integers(2)), rng.uniform(2, 6)
    away = np.zeros(2)
    away[axis] = np.ptp(contours[0], axis=0)[axis] / 2 + gap + radius
    parts = [(contours, center), (disc(radius), center - away), (disc(radius), center + away)]
    for part, place in parts:
        low, high = part[0].min(0) + place, part[0].max(0) + place
        if (low < 1).any() or (high > np.array(shape[::-1]) - 1).any():
            return []
    return [draw_mask(part, place, shape) for part, place in parts]


def _box_mask(mask: np.ndarray) -> np.ndarray:
    """Return the bounding box of a mask as a bool mask."""
    x, y, w, h = cv2.boundingRect(mask)
    area = np.zeros(mask.shape, bool)
    area[y : y + h, x : x + w] = True
    return area


def _random_shape(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Return a random image size (h, w)."""
    long, short = int(rng.uniform(0.8, 1.0) * size), int(rng.uniform(0.6, 0.8) * size)
    return (long, short) if rng.random() < 0.4 else (short, long)


def _object_masks(rng: np.random.Generator, name: str, shape: tuple[int, int], deformed: bool) -> list[np.ndarray]:
    """Return the mask of one object at a random position, or no mask if too little of it lies in the image."""
    side = np.exp(rng.uniform(np.log(1.5 * MIN_SIDE), np.log(0.5 * max(shape))))
    contours = silhouette(rng, name, side, deformed)
    mask = draw_mask(contours, rng.uniform(0, 1, 2) * shape[::-1], shape)
    outer, *hole = (cv2.contourArea(contour.astype(np.float32)) for contour in contours)
    visible = mask.sum() / 255 / (outer - sum(hole))
    return [mask] if visible >= MIN_VISIBLE and min(_box(mask > 127)[2:]) >= MIN_SIDE else []


def _crowd_masks(rng: np.random.Generator, name: str, shape: tuple[int, int], deformed: bool) -> list[np.ndarray]:
    """Return the masks of a cluster of small objects."""
    center, spread = rng.uniform(0.3, 0.7, 2) * shape[::-1], 0.1 * max(shape)
    return [
        draw_mask(
            silhouette(rng, name, rng.uniform(1, 1.8) * MIN_SIDE, deformed),
            center + rng.uniform(-spread, spread, 2),
            shape,
        )
        for _ in range(rng.integers(8, 15))
    ]


def _box(mask: np.ndarray) -> list[int]:
    """Return the bounding box xywh of a bool mask."""
    return list(cv2.boundingRect(mask.astype(np.uint8)))


def _write_split(folder: Path, split: str, seeds: Sequence[tuple[int, ...]], size: int, variant: Variant) -> None:
    """Write the images and the annotation file of one split."""
    (folder / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, seed in enumerate(seeds, start=1):
        rng = np.random.default_rng(seed)
        if variant == "context":
            image, items = context_scene(rng, size, 1 / len(CATEGORIES) if split == "val" else AGREEMENT)
        else:
            with_crowd = split == "train" and rng.random() < CROWD_FRACTION
            image, items = scene(rng, size, with_crowd, deformed=variant == "deformed")
        name = f"{image_id:06d}.jpg"
        encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
        (folder / split / name).write_bytes(encoded.tobytes())
        images.append({"id": image_id, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        annotations += [
            {
                "id": number,
                "image_id": image_id,
                "category_id": item.category,
                "bbox": _box(item.silhouette),
                "area": int(item.visible.sum()),
                "iscrowd": int(item.is_crowd),
                **({} if item.companion is None else {"companion": item.companion}),
            }
            for number, item in enumerate(items, start=len(annotations) + 1)
        ]
    categories = [{"id": category, "name": name} for category, name in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _read_spec(folder: Path) -> dict[str, Any] | None:
    """Return the arguments that a folder was generated with, or None if it is not a generated dataset."""
    try:
        spec = json.loads((folder / SPEC_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(spec, dict) or spec.keys() - {"variant"} != {"version", "train", "val", "seed", "size"}:
        return None
    return {"variant": "plain"} | spec  # written before there were variants
