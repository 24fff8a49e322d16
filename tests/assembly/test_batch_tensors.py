"""Conversion of batches to tensors."""

import numpy as np
import paddle

from ppdet_lite.assembly.batch_tensors import training_arguments
from tests import tiny


def test_crowds_are_separated_from_objects() -> None:
    batch = tiny.batch()
    batch["targets"][0] = {
        "boxes": np.array([[0, 0, side, side] for side in (1, 2, 3, 4)]),
        "classes": np.array([2, 1, 0, 1], np.int32),
        "is_crowd": np.array([False, True, False, True]),
    }
    (first, second), originals = training_arguments(batch)[3:]
    assert first.boxes.tolist() == [[0, 0, 1, 1], [0, 0, 3, 3]]
    assert first.classes.tolist() == [2, 0]
    assert first.crowds.tolist() == [[0, 0, 2, 2], [0, 0, 4, 4]]
    assert [field.shape for field in second] == [[0, 4], [0], [0, 4]]
    for target in (first, second):
        assert [field.dtype for field in target] == [paddle.float32, paddle.int64, paddle.float32]
    assert originals.flipped == [False, True]
