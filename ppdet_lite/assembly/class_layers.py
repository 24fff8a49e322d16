"""Transfer of a trained detector's class layers to other classes: outputs of shared classes are copied by name."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError

CLASSIFIERS = ("predictor.classify", "mimic.classify")  # K + 1 outputs, background last
REGRESSOR = "predictor.regress"  # 4 K outputs, class by class; 4 when class-agnostic


class ClassMatch(NamedTuple):
    """A detector's arrays whose class layers fit another model's classes."""

    arrays: dict[str, np.ndarray]
    kept: list[str]  # the model's classes whose outputs were copied
    new: list[str]  # its other classes, which keep their initial values


def match_classes(
    arrays: Mapping[str, np.ndarray],
    source_classes: Sequence[str],
    target_classes: Sequence[str],
    initial: Mapping[str, np.ndarray],
    renames: Mapping[str, str] | None = None,
) -> ClassMatch:
    """Convert the class layers in `arrays`, a detector of `source_classes`, to layers for `target_classes`.

    Outputs of the background and of classes in both lists are copied; those of other classes are taken from `initial`,
    the target model's own arrays. renames: name of a source class -> its name in the target; UserError if there is no
    such class.
    """
    renames = renames or {}
    for old, new in renames.items():
        if old not in source_classes or new not in target_classes:
            owner, known = ("weights", source_classes) if old not in source_classes else ("data", target_classes)
            raise UserError(f"pretrain_class_map: {old}: {new}: the {owner} have {', '.join(known)}")
    indices = {renames.get(name, name): i for i, name in enumerate(source_classes)}
    pairs = [(indices[name], i) for i, name in enumerate(target_classes) if name in indices]
    classes = np.array([*pairs, (len(source_classes), len(target_classes))])  # the background is last in both
    coordinates = 4 * np.repeat(np.array(pairs, int).reshape(-1, 1, 2), 4, axis=1) + np.arange(4).reshape(1, 4, 1)
    source, target = len(source_classes), len(target_classes)
    fitted = dict(arrays)
    for name, array in arrays.items():
        layer, count = name.rpartition(".")[0], array.shape[-1] if array.ndim else 0
        if name not in initial:
            continue
        if layer in CLASSIFIERS and count == source + 1:
            fitted[name] = _copy_outputs(array, initial[name], classes)
        elif layer == REGRESSOR and count == 4 * source and initial[name].shape[-1] == 4 * target:
            fitted[name] = _copy_outputs(array, initial[name], coordinates.reshape(-1, 2))
    kept = [target_classes[i] for _, i in pairs]
    return ClassMatch(fitted, kept, [name for name in target_classes if name not in kept])


def _copy_outputs(array: np.ndarray, initial: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return a copy of `initial` with outputs (last axis) replaced by those of `array`; pairs [P, 2] of (from, to)."""
    result = initial.copy()
    result[..., pairs[:, 1]] = array[..., pairs[:, 0]]
    return result
