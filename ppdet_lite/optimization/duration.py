"""Training durations with their unit: "12 epochs", "500 iterations"."""

import re
from typing import Annotated

from pydantic import BeforeValidator


def to_iterations(duration: str, iterations_per_epoch: int) -> int:
    """Convert a `Duration` to a number of iterations. Raises ValueError for any other text."""
    match = re.fullmatch(r"(\d{1,9}) ?(epochs?|iterations?)", duration)
    if match is None:
        raise ValueError("a duration such as '12 epochs' or '500 iterations'")
    return int(match[1]) * (iterations_per_epoch if match[2].startswith("epoch") else 1)


def _validate(duration: object) -> object:
    to_iterations(str(duration), 1)
    return duration


Duration = Annotated[str, BeforeValidator(_validate)]
