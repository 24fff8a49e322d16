"""Lengths of training with their unit in the text: "12 epochs", "500 iterations"."""

import re
from typing import Annotated

from pydantic import BeforeValidator


def to_iterations(duration: str, iterations_per_epoch: int) -> int:
    """The number of iterations that a `Duration` lasts. Raises ValueError for any other text."""
    match = re.fullmatch(r"(\d+) ?(epochs?|iterations?)", duration)
    if match is None:
        raise ValueError("a length such as '12 epochs' or '500 iterations'")
    return int(match[1]) * (iterations_per_epoch if match[2].startswith("epoch") else 1)


def _checked(duration: object) -> object:
    to_iterations(str(duration), 1)
    return duration


Duration = Annotated[str, BeforeValidator(_checked)]
