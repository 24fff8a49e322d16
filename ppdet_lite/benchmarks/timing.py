"""Summary of repeated time measurements."""

from collections.abc import Sequence

import numpy as np

WARM_UP = 2  # runs before the measurement


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum."""
    return {"median": float(np.median(seconds)), "min": float(np.min(seconds)), "max": float(np.max(seconds))}
