"""Type hints with bounds, shared by several components. The config check enforces them on values from YAML."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveFloat

Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
DeltaWeights = Annotated[Sequence[PositiveFloat], Field(min_length=4, max_length=4)]  # of dx, dy, dw, dh
