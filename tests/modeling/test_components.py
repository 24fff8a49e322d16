"""Requirements of custom components."""

import pytest

from ppdet_lite.modeling.components import Neck, RoIPool
from ppdet_lite.optimization.optimizer import Optimizer
from ppdet_lite.optimization.schedule import Schedule


@pytest.mark.parametrize(("slot", "lacking"), [(Neck, "forward"), (Optimizer, "_build"), (Schedule, "_decay")])
def test_a_component_must_implement_the_abstract_methods(slot: type, lacking: str) -> None:
    unfinished = type("Unfinished", (slot,), {})
    with pytest.raises(TypeError, match=lacking):
        unfinished()


def test_a_pooling_must_implement_the_level_methods() -> None:
    unfinished = type("Unfinished", (RoIPool,), {"forward": lambda self, features, rois, finest=0: features})
    with pytest.raises(TypeError, match="level"):
        unfinished()
