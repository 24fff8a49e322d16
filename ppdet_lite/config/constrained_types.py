"""Type hints with bounds, shared by the components. The config check enforces them on values from YAML.

Every number in a config has a lower and an upper bound, which also exclude infinity and NaN. Bounds are generous: they
exclude values with which building or running could only fail, such as a width that no memory can hold.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

_LARGEST, _SMALLEST = 1e12, 1e-12  # limits of floats: squares and quotients of two stay finite in float32


def _not_tiny(value: float) -> float:
    if value < _SMALLEST:
        raise ValueError(f"at least {_SMALLEST:g}")
    return value


PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=2**31)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
PositiveFloat = Annotated[_Finite, Field(gt=0, le=_LARGEST), AfterValidator(_not_tiny)]
NonNegativeFloat = Annotated[_Finite, Field(ge=0, le=_LARGEST)]
Number = Annotated[_Finite, Field(ge=-_LARGEST, le=_LARGEST)]
Fraction = Annotated[_Finite, Field(ge=0, le=1)]
PositiveFraction = Annotated[_Finite, Field(gt=0, le=1), AfterValidator(_not_tiny)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Pixels = Annotated[int, Field(gt=0, le=2**16)]  # a side of an image
Channels = Annotated[int, Field(gt=0, le=2**14)]  # of a feature map or a fully connected layer
Layers = Annotated[int, Field(gt=0, le=100)]  # number of identical layers
Bins = Annotated[int, Field(gt=0, le=64)]  # number of bins or samples along one axis of a RoI
DeltaWeights = Annotated[Sequence[PositiveFloat], Field(min_length=4, max_length=4)]  # of dx, dy, dw, dh
