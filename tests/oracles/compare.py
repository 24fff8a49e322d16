"""Detections against expected ones."""

from collections.abc import Sequence

import numpy as np


def assert_found(expected: np.ndarray, rows: np.ndarray, tolerance: Sequence[float]) -> None:
    """Each expected row is among the rows, each column within its tolerance; near-equal scores may swap places."""
    near = (np.abs(expected[:, None] - rows[None]) <= np.array(tolerance)).all(axis=2)
    assert near.any(axis=1).all(), expected[~near.any(axis=1)][:3]
