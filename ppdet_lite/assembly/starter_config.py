"""A config to start from for a dataset: base, image size and durations follow from its images and boxes."""

import math
import shlex
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ppdet_lite.assembly.setup import peer_differences
from ppdet_lite.config.merge import apply_overrides
from ppdet_lite.config.yaml_nodes import Node, flow, plain
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.checking.boxes import measure
from ppdet_lite.peers.zoo import find_detector
from ppdet_lite.storage.files import write_text

Start = Literal["zoo", "random"]
NAMES: dict[Start, str] = {"zoo": "detector.yml", "random": "detector_random.yml"}  # beside the data
MANY_IMAGES = 5000  # from here on the larger zoo detector
MAX_ENLARGED = 2.0  # images are not enlarged more than this
MAX_SIDE = 800  # of the recipes for COCO
STEP = 32  # sizes are multiples of the coarsest stride that matters
MAX_DETECTIONS = 100  # of the recipes, per image
MAX_EVALUATIONS = 4


class Base(NamedTuple):
    """A recipe to start from, and what is suitable for it."""

    recipe: str
    zoo: str | None  # name of the initial weights
    batch_size: int
    min_side: int  # smallest short side, in pixels
    object_side: int  # pixels in the input for objects of the smallest class: 1 to 1.5 times the smallest anchor
    min_seen: int  # minimum number of images in a training, counted with repetitions
    small_set_epochs: int  # epochs of a training on a small set
    small_set_seen: int  # maximum number of images in these epochs, counted with repetitions
    min_epochs: int  # of a training on any set; decisive for large ones
    seconds: float  # of a training step per image of one megapixel on two cores; docs/model_zoo.md, performance.md
    reason: str


RANDOM = Base(
    recipe="bccd/faster_rcnn_r18_fpn_bccd",
    zoo=None,
    batch_size=4,
    min_side=320,
    object_side=24,
    min_seen=1200,
    small_set_epochs=25,
    small_set_seen=10000,
    min_epochs=12,
    seconds=1.8,
    reason="slim R18-FPN, for a laptop",
)
SMALL = Base(
    recipe="faster_rcnn/faster_rcnn_r34_fpn_1x_coco",
    zoo="ppdet/faster_rcnn_r34_fpn_1x_coco",
    batch_size=2,
    min_side=384,
    object_side=32,
    min_seen=600,
    small_set_epochs=8,
    small_set_seen=4000,
    min_epochs=6,
    seconds=11.0,
    reason="R34-FPN, the fastest detector of the zoo",
)
MEDIUM = SMALL._replace(
    recipe="faster_rcnn/faster_rcnn_r50_fpn_2x_coco",
    zoo="ppdet/faster_rcnn_r50_fpn_2x_coco",
    seconds=13.0,
    reason=f"R50-FPN, since there are {MANY_IMAGES} images or more",
)


class Settings(NamedTuple):
    """What the config sets, and the numbers in its comments."""

    base: Base
    batch_size: int
    short_side: int
    long_side: int
    ratio: float  # typical short side after resizing / before
    smallest: tuple[str, float]  # name of a class with the smallest objects, and their typical side in the input
    iterations: int
    epochs: float
    evaluations: int
    warmup: int
    hours: float  # of training on two cores
    max_detections: int | None  # None: that of the base is enough


def write_starter_config(folder: Path, train: CocoDataset, val: CocoDataset, start: Start) -> Path:
    """Write a config for a dataset into its folder, and return its path. Raises UserError if it has no objects."""
    path = folder / NAMES[start]
    write_text(path, starter_config(path, train, val, start))
    return path


def starter_config(path: Path, train: CocoDataset, val: CocoDataset, start: Start) -> str:
    """Return the text of a config for a dataset. path: the file that it will have, which its comments name.

    start: "zoo" starts from a detector trained on COCO, "random" from random weights with a smaller detector.
    """
    settings = derive_settings(train, val, start)
    base, short = settings.base, settings.short_side
    model, preprocess = _project_settings(base)
    if settings.max_detections is not None:
        model["postprocess"] = {"max_detections": settings.max_detections}
    every = math.ceil(settings.iterations / settings.evaluations)
    name, side = settings.smallest
    enlarged = f"{settings.ratio:.2g} of their size" if abs(settings.ratio - 1) > 0.05 else "their own size"
    lines = [
        f"# Detects {_class_list(train)}: {len(train)} training and {len(val)} validation images.",
        f"# ppdet-lite train -c {_quoted(path)} --eval",
        f"# Change any value; what is not here is inherited: ppdet-lite train -c {_quoted(path)} --print-config",
        f"_base_: {base.recipe}  # {base.reason}",
        *_start_lines(base, path),
        f"output: {flow(f'output/{path.resolve().parent.name}')}  # the run is in {path.stem}/ there",
        *(["model:"] if model else []),
        *(f"  {key}: {flow(value)}" for key, value in model.items()),
        "data:",
        f"  train: {_source(train)}",
        f"  val: {_source(val)}",
        f"  # Images at {enlarged}: objects of the class {name!r} then have about {side:.0f} x {side:.0f} pixels.",
        "  # A larger short side finds smaller objects; time and memory grow with its square.",
        f"  preprocess: {flow({'short_side': short, 'long_side': settings.long_side, **preprocess})}",
        "  # Random sizes around it, and every other image mirrored; flip: 0 if left and right differ, as in text.",
        "  # If light and colors vary: color_jitter: {brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.02}",
        f"  augment: {flow({'short_sides': [short - STEP, short, short + STEP], 'flip': 0.5})}",
        f"  loader: {flow({'batch_size': settings.batch_size, 'threads': 2})}  # images per step",
        "# The learning rate is the base's, for base_batch images, and is scaled to the batch size.",
        f"schedule: {flow({'type': 'CosineSchedule', 'warmup_iterations': settings.warmup})}  # a tenth of training",
        "train:",
        f"  # {settings.epochs:.3g} epochs; {_duration(settings.hours)} on two cores. More may give a better AP.",
        f"  length: {settings.iterations} iterations",
        f"  evaluate_every: {every} iterations  # {settings.evaluations} in all; the best checkpoint is kept",
        f"  checkpoint_every: {every} iterations  # to resume from, with --resume auto",
    ]
    return "\n".join(lines) + "\n"


def derive_settings(train: CocoDataset, val: CocoDataset, start: Start) -> Settings:
    """Return the settings that fit a dataset. Raises UserError if no image has objects to train on."""
    base = RANDOM if start == "random" else SMALL if len(train) < MANY_IMAGES else MEDIUM
    sizes = measure(train)
    if not len(sizes.sides):
        raise UserError(f"{train.file}: no image has objects to train on; annotate some, or divide the images anew")
    smallest, side = _smallest_class(train)
    height_width = np.stack([sizes.heights, sizes.widths])
    image_side = float(np.median(height_width.min(axis=0)))
    wanted = max(image_side * base.object_side / side, min(base.min_side, image_side))
    short = _rounded(min(wanted, MAX_SIDE, image_side * MAX_ENLARGED))
    aspect = float(np.clip(np.percentile(height_width.max(axis=0) / height_width.min(axis=0), 95), 4 / 3, 5 / 2))
    long = math.ceil((short + STEP) * aspect / STEP) * STEP
    batch_size = min(base.batch_size, len(train))
    of_small_set = min(base.small_set_epochs * len(train), base.small_set_seen)
    seen = max(base.min_seen, of_small_set, base.min_epochs * len(train))
    iterations = math.ceil(seen / batch_size / 20) * 20
    evaluations = max(1, min(MAX_EVALUATIONS, seen // (4 * len(val))))
    pixels = short * short * float(np.median(height_width.max(axis=0) / height_width.min(axis=0))) / 1e6
    busiest = int(sizes.per_image.max())
    return Settings(
        base=base,
        batch_size=batch_size,
        short_side=short,
        long_side=long,
        ratio=short / image_side,
        smallest=(smallest, side * short / image_side),
        iterations=iterations,
        epochs=iterations * batch_size / len(train),
        evaluations=evaluations,
        warmup=max(min(iterations // 10, 1000), 1),
        hours=iterations * batch_size * base.seconds * pixels / 3600,
        max_detections=math.ceil(busiest / 100) * 100 if busiest > MAX_DETECTIONS else None,
    )


def _smallest_class(dataset: CocoDataset) -> tuple[str, float]:
    """Return the class whose objects are smallest, and their median side in pixels; a tenth of the classes is ignored.

    AP is the mean over classes, so a rare class of small objects matters as much as a frequent one.
    """
    objects = [dataset.annotations(row) for row in range(len(dataset))]
    boxes = np.concatenate([image.boxes[~image.is_crowd] for image in objects]).astype(float)
    classes = np.concatenate([image.classes[~image.is_crowd] for image in objects])
    sides = np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    present = np.unique(classes)
    medians = np.array([np.median(sides[classes == k]) for k in present])
    chosen = int(np.argsort(medians, kind="stable")[len(present) // 10])
    return dataset.class_names[int(present[chosen])], max(float(medians[chosen]), 1.0)


def _rounded(side: float) -> int:
    return max(round(side / STEP), 2) * STEP


def _project_settings(base: Base) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sections `model` and `data.preprocess` with which the project of the initial weights computes."""
    if base.zoo is None:
        return {}, {}
    entry = find_detector(base.zoo)
    overrides = [*entry.overrides, *peer_differences(base.recipe, entry.peer, entry.overrides)]
    tree = plain(apply_overrides(Node({}, ""), overrides))
    return tree.get("model", {}), tree.get("data", {}).get("preprocess", {})


def _start_lines(base: Base, path: Path) -> list[str]:
    """Return the line of the initial weights, with comments on the alternatives."""
    if base.zoo is None:
        return ["pretrain_weights: null  # random, so that training takes longer than from a detector"]
    entry = find_detector(base.zoo)
    return [
        "# A detector trained on COCO, downloaded once; `model` below has its project's settings. Without a network,",
        f"# or for a smaller and faster detector: ppdet-lite train --data {_quoted(path.parent)} --start random",
        "# (pretrain_weights: null alone would leave this base with frozen norms that fit no random weights.)",
        f"pretrain_weights: {flow(entry.spec)}",
    ]


def _class_list(dataset: CocoDataset) -> str:
    names = dataset.class_names
    more = f" and {len(names) - 5} more classes" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{more}"


def _quoted(path: Path) -> str:
    return shlex.quote(path.as_posix())


def _source(dataset: CocoDataset) -> str:
    return flow({"images": dataset.images.as_posix(), "annotations": Path(dataset.file).as_posix()})


def _duration(hours: float) -> str:
    return f"about {hours:.2g} hours" if hours >= 1.5 else f"about {max(round(hours * 60), 1)} minutes"
