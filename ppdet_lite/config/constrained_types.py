"""Type hints with bounds that several components share; the config check tells a user of them."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, PositiveFloat

Share = Annotated[float, Field(ge=0, le=1)]
DeltaWeights = Annotated[Sequence[PositiveFloat], Field(min_length=4, max_length=4)]  # of dx, dy, dw, dh
