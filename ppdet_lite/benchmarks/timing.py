"""What the benchmarks share: how repeated times are told."""

from collections.abc import Sequence

import numpy as np

WARM_UP = 2  # rounds that are not counted


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most of repeated times."""
    return {"median": float(np.median(seconds)), "min": float(np.min(seconds)), "max": float(np.max(seconds))}
