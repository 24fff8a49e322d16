"""Repeated time measurements and their summary."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

WARM_UP = 2  # runs before the measurement


def time_alternately(
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    now: Callable[[], float] = time.perf_counter,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Return run times in seconds per function. The functions alternate, so that other load affects them equally.

    now: returns the time in seconds. pause: seconds of sleep before each call.
    """
    seconds = {name: [] for name in functions}
    for _ in range(WARM_UP + repeats):
        for name, function in functions.items():
            time.sleep(pause)
            start = now()
            function()
            seconds[name].append(now() - start)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median, minimum and maximum."""
    return {"median": float(np.median(seconds)), "min": float(np.min(seconds)), "max": float(np.max(seconds))}
