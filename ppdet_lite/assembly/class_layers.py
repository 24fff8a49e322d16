"""Transfer of a trained detector's class layers to other classes: outputs of shared classes are copied by name."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError

CLASSIFIERS = ("predictor.classify", "mimic.classify")  # K + 1 outputs, background last; in a cascade in each stage
REGRESSOR = "predictor.regress"  # 4 K outputs, class by class; 4 when class-agnostic


class ClassMatch(NamedTuple):
    """A detector's arrays whose class layers fit another model's classes."""

    arrays: dict[str, np.ndarray]
    copied: dict[str, str]  # the model's classes whose outputs were copied -> the source class
    new: list[str]  # its other classes, which keep their initial values
    layers: list[str]  # names of the converted arrays


def is_classifier(name: str) -> bool:
    """Return whether a weight belongs to a classifier: its last axis has the K + 1 outputs."""
    return name.rpartition(".")[0].endswith(CLASSIFIERS)


def with_class_count(
    shapes: Mapping[str, tuple[int, ...]], old: int, new: int, class_agnostic: bool = False
) -> dict[str, tuple[int, ...]]:
    """Return a detector's shapes with the class layers of `new` classes instead of `old`.

    class_agnostic: whether the boxes are; with a single class, the shapes do not show it.
    """

    def converted(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        layer = name.rpartition(".")[0]
        if is_classifier(name) and shape[-1] == old + 1:
            return (*shape[:-1], new + 1)
        has_boxes_of_classes = layer == REGRESSOR and shape[-1] == 4 * old and not class_agnostic
        return (*shape[:-1], 4 * new) if has_boxes_of_classes else shape

    return {name: converted(name, tuple(shape)) for name, shape in shapes.items()}


def match_classes(
    arrays: Mapping[str, np.ndarray],
    source_classes: Sequence[str],
    target_classes: Sequence[str],
    initial: Mapping[str, np.ndarray],
    renames: Mapping[str, str] | None = None,
    class_agnostic: bool = False,
) -> ClassMatch:
    """Convert the class layers in `arrays`, a detector of `source_classes`, to layers for `target_classes`.

    Outputs of the background and of classes in both lists are copied; those of other classes are taken from `initial`,
    the target model's own arrays. renames: name of a source class -> its name in the target; UserError if there is no
    such class, or if two source classes, one of them perhaps by its own name, become the same target class.
    class_agnostic: see `with_class_count`.
    """
    renames = renames or {}
    for old, new in renames.items():
        if old not in source_classes or new not in target_classes:
            owner, known = ("weights", source_classes) if old not in source_classes else ("data", target_classes)
            raise UserError(f"pretrain_class_map: {old}: {new}: the {owner} have {', '.join(known)}")
    indices: dict[str, int] = {}
    for i, name in enumerate(source_classes):
        target_name = renames.get(name, name)
        if target_name in indices and target_name in target_classes:
            both = f"{source_classes[indices[target_name]]} and {name}"
            raise UserError(f"pretrain_class_map: {both} of the weights both become {target_name}; map only one to it")
        indices[target_name] = i
    source, target = len(source_classes), len(target_classes)
    matched = [(indices[name], i) for i, name in enumerate(target_classes) if name in indices]
    pairs = np.array(matched, int).reshape(-1, 2)  # (source, target) classes
    outputs = np.concatenate([pairs, [(source, target)]])  # the background is last
    coordinates = (4 * pairs[:, None] + np.arange(4)[:, None]).reshape(-1, 2)
    fitted, layers = dict(arrays), []
    for name, array in arrays.items():
        layer, count = name.rpartition(".")[0], array.shape[-1] if array.ndim else 0
        if name not in initial:
            continue
        if is_classifier(name) and count == source + 1:
            fitted[name] = _copy_outputs(array, initial[name], outputs)
            layers.append(name)
        elif class_agnostic or layer != REGRESSOR:
            continue
        elif count == 4 * source and initial[name].shape[-1] == 4 * target:
            fitted[name] = _copy_outputs(array, initial[name], coordinates)
            layers.append(name)
    copied = {target_classes[i]: source_classes[source_index] for source_index, i in matched}
    return ClassMatch(fitted, copied, [name for name in target_classes if name not in copied], layers)


def _copy_outputs(array: np.ndarray, initial: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return a copy of `initial` with outputs (last axis) replaced by those of `array`; pairs [P, 2] of (from, to)."""
    result = initial.copy()
    result[..., pairs[:, 1]] = array[..., pairs[:, 0]]
    return result
