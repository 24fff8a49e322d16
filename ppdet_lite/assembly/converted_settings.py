"""The comparison of a config with that of converted weights: settings that change the numbers, but not the shapes."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ppdet_lite.config.checked_config import Config, to_plain
from ppdet_lite.core.log import get_logger
from ppdet_lite.storage.weights import Weights

MODEL = (
    "model.backbone.variant",
    "model.rpn.anchors",
    "model.rpn.min_size",
    "model.roi_pool",
    "model.box_head.variant",
    "model.average",
)
PIXELS = tuple(f"data.preprocess.{key}" for key in ("channels", "pixel_range", "mean", "std"))


def warn_about_conversion(config: Config, weights: Weights, settings: Sequence[str]) -> None:
    """Warn if weights were converted from another project with other values of some settings than a config has."""
    if "converted_from" not in weights.meta:
        return
    now, then = to_plain(config), yaml.safe_load(weights.meta["config"])
    differences = [line for path in settings for line in _differences(_value(now, path), _value(then, path), path)]
    if differences:
        message = "%s computes with other settings in %s: %s; use them, as its config.yml does"
        get_logger().warning(message, weights.source, weights.meta["converted_from"]["project"], ", ".join(differences))


def _value(tree: Any, path: str) -> Any:
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _differences(now: Any, then: Any, path: str) -> list[str]:
    """Return "path: their value instead of ours" for each value that differs; none for components of other types."""
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        if now.get("type") != then.get("type"):
            return []
        return [line for key in now.keys() & then.keys() for line in _differences(now[key], then[key], f"{path}.{key}")]
    return [f"{path} {then} instead of {now}"] if None not in (now, then) and now != then else []
