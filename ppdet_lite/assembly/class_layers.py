"""A trained detector's class layers for other classes: what both know is carried over by name."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError

CLASSIFIERS = ("predictor.classify", "mimic.classify")  # K + 1 outputs, background last
REGRESSOR = "predictor.regress"  # 4 K outputs, class by class; 4 when class-agnostic


class ClassMatch(NamedTuple):
    """Class layers fitted to a model, and which of its classes they bring."""

    arrays: dict[str, np.ndarray]
    kept: list[str]
    new: list[str]


def match_classes(
    arrays: Mapping[str, np.ndarray],
    theirs: Sequence[str],
    ours: Sequence[str],
    fresh: Mapping[str, np.ndarray],
    renames: Mapping[str, str] | None = None,
) -> ClassMatch:
    """Fit the class layers among arrays of a detector of the classes `theirs` to one of the classes `ours`.

    Outputs of a class that both have, and of the background, are theirs; those of other classes stay `fresh`, the
    model's own. renames: their name -> the name it has here. Raises UserError for a rename of or to no class.
    """
    renames = renames or {}
    for old, new in renames.items():
        if old not in theirs or new not in ours:
            where, known = ("the weights have", theirs) if old not in theirs else ("the data have", ours)
            raise UserError(f"pretrain_class_map: {old}: {new}: {where} {', '.join(known)}")
    places = {renames.get(name, name): i for i, name in enumerate(theirs)}
    pairs = [(places[name], i) for i, name in enumerate(ours) if name in places]
    classes = np.array([*pairs, (len(theirs), len(ours))])  # the background too
    coordinates = 4 * np.repeat(np.array(pairs, int).reshape(-1, 1, 2), 4, axis=1) + np.arange(4).reshape(1, 4, 1)
    fitted = dict(arrays)
    for name, array in arrays.items():
        layer, count = name.rpartition(".")[0], array.shape[-1] if array.ndim else 0
        if name not in fresh:
            continue
        if layer in CLASSIFIERS and count == len(theirs) + 1:
            fitted[name] = _carried(array, fresh[name], classes)
        elif layer == REGRESSOR and count == 4 * len(theirs) and fresh[name].shape[-1] == 4 * len(ours):
            fitted[name] = _carried(array, fresh[name], coordinates.reshape(-1, 2))
    kept = [ours[i] for _, i in pairs]
    return ClassMatch(fitted, kept, [name for name in ours if name not in kept])


def _carried(array: np.ndarray, fresh: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The fresh array with outputs (last axis) of the other in place: pairs [P, 2] of (from, to)."""
    result = fresh.copy()
    result[..., pairs[:, 1]] = array[..., pairs[:, 0]]
    return result
