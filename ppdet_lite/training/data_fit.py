"""Warnings about settings that do not fit the dataset that they are used for, for `ppdet-lite check-data`."""

from collections.abc import Iterator

import numpy as np

from ppdet_lite.assembly.setup import build_dataset
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.checking.boxes import measure
from ppdet_lite.training.plan import Plan, make_plan
from ppdet_lite.training.setting_warnings import warn_about_batch, warn_about_sizes

FEW_ITERATIONS = 200  # below, a detector hardly leaves the warm-up of the recipes
ENLARGED = 2.0  # an image gains nothing from being enlarged further, except where its objects are smaller than anchors


def warn_about_fit(config: Config) -> None:
    """Warn about settings of a config that do not fit its training set, on one device.

    They concern durations, batch and image sizes, and limits of boxes. Raises UserError for a dataset that training
    refuses, and for settings that contradict each other.
    """
    train, data = build_dataset(config, "train"), config["data"]
    batch_size, accumulate = data["loader"]["batch_size"], config["train"]["accumulate"]
    plan = make_plan(config, max(train.epoch_length // batch_size // accumulate, 1))
    warn_about_batch(train.epoch_length, batch_size, 1, accumulate)
    warn_about_sizes(data["augment"]["short_sides"], data["preprocess"]["short_side"])
    for message in [*_about_durations(config, plan), *_about_boxes(config, train)]:
        get_logger().warning("%s", message)


def _about_durations(config: Config, plan: Plan) -> Iterator[str]:
    train = config["train"]
    if plan.total < FEW_ITERATIONS and "epoch" in train["length"]:
        yield (
            f"{config.origin('train.length')}: train.length: only {plan.total} iterations in {train['length']} of this "
            "dataset; give it in iterations, such as 600 iterations from a detector, or 1000 from random weights"
        )
    if plan.evaluate_every is not None and plan.evaluate_every > plan.total:
        yield (
            f"{config.origin('train.evaluate_every')}: train.evaluate_every: {train['evaluate_every']} is longer than "
            f"the training of {plan.total} iterations, which is only evaluated at its end"
        )


def _about_boxes(config: Config, train: CocoDataset) -> Iterator[str]:
    """Yield what in the sizes of the network input, anchors and limits does not fit the boxes."""
    preprocess, model = config["data"]["preprocess"], config["model"]
    if config["data"]["augment"]["scale_jitter"] is not None:
        return
    sizes = measure(train)
    limits = np.stack([sizes.heights, sizes.widths])
    ratios = np.minimum(preprocess["short_side"] / limits.min(axis=0), preprocess["long_side"] / limits.max(axis=0))
    sides = sizes.sides * np.repeat(ratios, sizes.per_image)
    anchor = float(np.min(model["rpn"]["anchors"]["sizes"]))
    place = config["data"]["preprocess"].location_of("short_side")
    ratio = float(np.median(ratios))
    if len(sides) and (small := float(np.mean(sides < anchor))) > 0.5:
        needed = round(preprocess["short_side"] * anchor / float(np.median(sides)) / 32 + 0.5) * 32
        yield (
            f"{place}: {small:.0%} of the boxes are smaller than the smallest anchor, {anchor:g} pixels, after "
            f"resizing; set data.preprocess.short_side to about {needed} (and long_side, augment.short_sides), or "
            "smaller model.rpn.anchors.sizes"
        )
    elif ratio > ENLARGED:
        yield (
            f"{place}: images are enlarged {ratio:.1f} times, which takes time without adding detail; "
            f"set data.preprocess.short_side to {round(preprocess['short_side'] / ratio * ENLARGED)} or less"
        )
    most = model["postprocess"]["max_detections"]
    if crowded := int(np.sum(sizes.per_image > most)):
        yield (
            f"{config.origin('model.postprocess.max_detections')}: model.postprocess.max_detections: {crowded} of "
            f"{len(train)} images have more than {most} objects, up to {sizes.per_image.max()}; raise it"
        )
