"""What a part of one's own must bring along."""

import pytest

from ppdet_lite.modeling.components import Neck, RoIPool
from ppdet_lite.optimization.optimizer import Optimizer
from ppdet_lite.optimization.schedule import Schedule


@pytest.mark.parametrize(("slot", "lacking"), [(Neck, "forward"), (Optimizer, "_build"), (Schedule, "_decay")])
def test_a_part_that_lacks_its_work_cannot_be_made(slot: type, lacking: str) -> None:
    unfinished = type("Unfinished", (slot,), {})
    with pytest.raises(TypeError, match=lacking):
        unfinished()


def test_a_pooling_needs_its_levels_too() -> None:
    unfinished = type("Unfinished", (RoIPool,), {"forward": lambda self, features, rois, finest=0: features})
    with pytest.raises(TypeError, match="level"):
        unfinished()
