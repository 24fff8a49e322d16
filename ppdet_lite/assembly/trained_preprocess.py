"""The comparison of a config's preprocessing with that of the run that trained the weights."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import yaml

from ppdet_lite.core.log import get_logger
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.storage.weights import Weights

ASPECTS = (1, 4 / 3, 16 / 9)  # long side / short side of the images for which sizes are compared
SIZES = ("short_side", "long_side")


def warn_about_preprocess(preprocess: Preprocess, weights: Weights) -> None:
    """Warn if images are resized to other sizes, or otherwise converted, than in the training of a checkpoint."""
    trained = _trained_data(weights.meta)
    if trained is None:
        return
    then, now = trained["preprocess"], asdict(preprocess)
    if _is_other_size(trained, preprocess):
        get_logger().warning(
            f"{weights.source} was trained at {_describe_training(trained)}, but data.preprocess resizes images to "
            f"short_side {now['short_side']}, long_side {now['long_side']}"
        )
    keys = [
        key for key in now if key in then and key not in (*SIZES, "stride") and _plain(then[key]) != _plain(now[key])
    ]
    if keys:
        changes = ", ".join(f"{key} {_plain(now[key])} instead of {_plain(then[key])}" for key in keys)
        get_logger().warning(f"data.preprocess differs from the training of {weights.source}: {changes}")


def _trained_data(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the section `data` of the config in a checkpoint's metadata, or None if it has no complete one."""
    try:
        data = yaml.safe_load(meta["config"])["data"]
        return data if all(data["preprocess"][key] > 0 for key in SIZES) else None
    except (KeyError, TypeError, yaml.YAMLError):
        return None


def _is_other_size(trained: Mapping[str, Any], preprocess: Preprocess) -> bool:
    """Return whether images of some aspect ratio become smaller or larger than in training."""
    for aspect in ASPECTS:
        side = min(preprocess.short_side, preprocess.long_side / aspect)
        sides = [min(short, long / aspect) for short, long in _trained_sizes(trained)]
        if not min(sides) <= side <= max(sides):
            return True
    return False


def _trained_sizes(trained: Mapping[str, Any]) -> Iterator[tuple[float, float]]:
    """Yield the limits (short side, long side) of the sizes in training."""
    limits, augment = trained["preprocess"], trained.get("augment") or {}
    if augment.get("scale_jitter"):
        jitter = augment["scale_jitter"]
        for scale in jitter["scales"]:
            yield min(jitter["size"]) * scale, max(jitter["size"]) * scale
    else:
        for short_side in augment.get("short_sides") or [limits["short_side"]]:
            yield short_side, limits["long_side"]


def _describe_training(trained: Mapping[str, Any]) -> str:
    shorts, longs = zip(*_trained_sizes(trained))
    return f"short_side {_range(shorts)}, long_side {_range(longs)}"


def _range(values: tuple[float, ...]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
