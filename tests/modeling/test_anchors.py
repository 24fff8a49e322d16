"""Anchors by hand."""

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.anchors import AnchorGenerator

# size 32: sides 32 / sqrt(ratio) x 32 * sqrt(ratio)
WIDE, SQUARE, HIGH = (45.254834, 22.627417), (32, 32), (22.627417, 45.254834)


def around(x: float, y: float, extent: tuple[float, float]) -> list[float]:
    width, height = extent
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def test_base_anchors_have_one_area_and_the_ratios() -> None:
    base = AnchorGenerator().base_anchors(32)
    assert base.dtype == np.float32
    np.testing.assert_allclose(base, [around(0, 0, shape) for shape in (WIDE, SQUARE, HIGH)], rtol=1e-6)


def test_order_and_place() -> None:
    """Two rows of three cells: the anchors of row 0, column 0 first, ratios innermost; x is the column."""
    anchors = AnchorGenerator(sizes=[32])([paddle.zeros([2, 5, 2, 3])], [8])
    cells = [(x, y) for y in (0, 8) for x in (0, 8, 16)]
    expected = [around(x, y, shape) for x, y in cells for shape in (WIDE, SQUARE, HIGH)]
    np.testing.assert_allclose(anchors[0].numpy(), expected, rtol=1e-6)


def test_offset_is_a_share_of_the_stride() -> None:
    anchors = AnchorGenerator(sizes=[32], ratios=[1.0], offset=0.5)([paddle.zeros([1, 1, 1, 2])], [16])
    assert anchors[0].tolist() == [[-8, -8, 24, 24], [8, -8, 40, 24]]


def test_rounded_corners() -> None:
    base = AnchorGenerator(rounded=True).base_anchors(32)
    assert base.tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]


def test_every_level_has_its_size_and_stride() -> None:
    generator = AnchorGenerator(sizes=[10, 40], ratios=[1.0])
    fine, coarse = generator([paddle.zeros([1, 1, 4, 6]), paddle.zeros([1, 1, 2, 3])], [4, 8])
    assert (fine.shape, coarse.shape) == ([24, 4], [6, 4])
    assert fine[-1].tolist() == [15, 7, 25, 17]  # around (20, 12)
    assert coarse[-1].tolist() == [-4, -12, 36, 28]  # around (16, 8)


def test_per_cell() -> None:
    assert AnchorGenerator().per_cell == 3
    assert AnchorGenerator(ratios=(1.0, 2.0)).per_cell == 2


def test_a_size_is_needed_for_every_level() -> None:
    with pytest.raises(ValueError) as error:
        AnchorGenerator()([paddle.zeros([1, 1, 2, 2])] * 4, [4, 8, 16, 32])
    assert str(error.value) == "5 anchor sizes for 4 pyramid levels"


def test_several_sizes_on_one_level() -> None:
    """Size by size, ratios innermost, as detectron2 and PaddleDetection number them."""
    generator = AnchorGenerator(sizes=[[32, 64]])
    base = generator.base_anchors([32, 64])
    expected = [around(0, 0, shape) for shape in (WIDE, SQUARE, HIGH)]
    np.testing.assert_allclose(base, [*expected, *(2 * np.array(expected))], rtol=1e-6)
    assert generator.per_cell == 6
    assert generator([paddle.zeros([1, 1, 2, 3])], [16])[0].shape == [2 * 3 * 6, 4]


def test_levels_must_have_equally_many_sizes() -> None:
    with pytest.raises(ValueError, match="sizes: every level needs the same number of sizes, not 2, 1"):
        AnchorGenerator(sizes=[[32, 64], [128]])


def test_measured_strides_are_those_of_each_axis() -> None:
    """An image of 28 x 40: 28 / 3 is 9 and 40 / 6 is 6, rounded down."""
    generator = AnchorGenerator(sizes=(4, 8), ratios=(1.0,), measured_strides=True)
    maps = [paddle.zeros([1, 1, 7, 10]), paddle.zeros([1, 1, 3, 6])]
    fine, coarse = generator(maps, [4, 8])
    assert fine.reshape([7, 10, 4])[2, 3].tolist() == [12 - 2, 8 - 2, 12 + 2, 8 + 2]
    assert coarse.reshape([3, 6, 4])[2, 5].tolist() == [30 - 4, 18 - 4, 30 + 4, 18 + 4]
