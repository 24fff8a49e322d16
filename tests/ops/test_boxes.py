"""Box arithmetic, by hand and against loops over single boxes."""

import math

import numpy as np
import pytest

from ppdet_lite.ops.boxes import box_area, box_coverage, box_iou, clip_boxes, decode_boxes, encode_boxes
from tests.tiny import area, boxes, float32, iou, overlap, random_boxes

UNIT = (1.0, 1.0, 1.0, 1.0)
HEAD = (10.0, 10.0, 5.0, 5.0)
DISTINCT = (10.0, 8.0, 5.0, 4.0)


def test_area_is_continuous() -> None:
    assert box_area(boxes([2, 3, 7, 13], [4, 4, 4, 9], [-1, -1, 0.5, 1])).tolist() == [50, 0, 3]


def test_area_of_any_shape() -> None:
    assert box_area(float32([[[0, 0, 2, 3], [0, 0, 4, 5]]])).tolist() == [[6, 20]]


def test_iou_by_hand() -> None:
    first = boxes([0, 0, 10, 10], [0, 0, 20, 10])
    second = boxes([5, 0, 15, 10], [0, 0, 10, 10], [10, 0, 20, 10], [2, 2, 4, 6], [3, 3, 3, 3])
    expected = [[1 / 3, 1, 0, 0.08, 0], [0.5, 0.5, 0.5, 0.04, 0]]
    np.testing.assert_allclose(box_iou(first, second).numpy(), expected, rtol=1e-6)


def test_iou_of_two_points_is_zero() -> None:
    assert box_iou(boxes([3, 3, 3, 3]), boxes([3, 3, 3, 3])).tolist() == [[0]]


@pytest.mark.parametrize(("first", "second"), [(0, 3), (3, 0), (0, 0)])
def test_pairs_with_no_boxes(first: int, second: int) -> None:
    row = [0, 0, 1, 1]
    a, b = boxes(*[row] * first), boxes(*[row] * second)
    assert box_iou(a, b).shape == box_coverage(a, b).shape == [first, second]


def test_iou_and_coverage_against_loops() -> None:
    rng = np.random.default_rng(3)
    first, second = random_boxes(rng, 23), random_boxes(rng, 17)
    expected = [[iou(a, b) for b in second] for a in first]
    np.testing.assert_allclose(box_iou(float32(first), float32(second)).numpy(), expected, rtol=1e-5, atol=1e-6)
    covered = [[overlap(a, b) / area(a) for b in second] for a in first]
    np.testing.assert_allclose(box_coverage(float32(first), float32(second)).numpy(), covered, rtol=1e-5, atol=1e-6)
    assert 0 < np.count_nonzero(expected) < 23 * 17


def test_coverage_is_of_the_box_not_of_the_region() -> None:
    found = box_coverage(boxes([0, 0, 10, 10], [0, 0, 5, 5], [50, 50, 60, 60], [1, 1, 1, 3]), boxes([0, 0, 5, 100]))
    assert found.tolist() == [[0.5], [1], [0], [0]]


def test_clip_to_each_images_height_and_width() -> None:
    rows = float32([[[-5, -5, 200, 200], [10, 20, 30, 40]], [[60, 10, 200, 90], [-3, 0, 0, 7]]])
    sizes = float32([[[50, 100]], [[80, 70]]])
    expected = [[[0, 0, 100, 50], [10, 20, 30, 40]], [[60, 10, 70, 80], [0, 0, 0, 7]]]
    assert clip_boxes(rows, sizes).tolist() == expected


def test_encode_by_hand() -> None:
    # 10 x 20 around (5, 10) -> 20 x 20 around (15, 15)
    found = encode_boxes(boxes([0, 0, 10, 20]), boxes([5, 5, 25, 25]), HEAD)
    np.testing.assert_allclose(found.numpy(), [[10.0, 2.5, 5 * math.log(2), 0]], rtol=1e-6)
    # 4 x 2 around (2, 1) -> 8 x 8 around (4, 4); each delta has a weight of its own
    found = encode_boxes(boxes([0, 0, 4, 2]), boxes([0, 0, 8, 8]), DISTINCT)
    np.testing.assert_allclose(found.numpy(), [[5.0, 12.0, 5 * math.log(2), 4 * math.log(4)]], rtol=1e-6)


def test_decode_by_hand() -> None:
    # the center moves by (0.5 * 10, -0.25 * 20) to (10, 5); 20 wide, 10 high
    deltas = float32([[5.0, -2.5, 5 * math.log(2), -5 * math.log(2)]])
    np.testing.assert_allclose(decode_boxes(boxes([0, 0, 10, 20]), deltas, HEAD).numpy(), [[0, 0, 20, 10]], atol=1e-5)


@pytest.mark.parametrize("weights", [UNIT, HEAD, DISTINCT])
def test_decode_inverts_encode(weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(5)
    start, end = float32(random_boxes(rng, 40)), float32(random_boxes(rng, 40))
    np.testing.assert_allclose(decode_boxes(start, encode_boxes(start, end, weights), weights).numpy(), end, atol=2e-4)


def test_decode_gives_each_roi_a_box_per_class() -> None:
    deltas = np.zeros((2, 3, 4), np.float32)
    deltas[1, 2, 0] = 1
    found = decode_boxes(boxes([0, 0, 2, 2], [4, 4, 8, 8]).unsqueeze(1), float32(deltas), UNIT).numpy()
    assert found.shape == (2, 3, 4)
    assert found[0].tolist() == [[0, 0, 2, 2]] * 3
    assert found[1].tolist() == [[4, 4, 8, 8], [4, 4, 8, 8], [8, 4, 12, 8]]


@pytest.mark.parametrize("huge", [100.0, 1e30, math.inf])
def test_a_box_grows_at_most_62_and_a_half_fold(huge: float) -> None:
    found = decode_boxes(boxes([-1, -2, 1, 2]), float32([[0, 0, huge, huge]]), UNIT).numpy()
    np.testing.assert_allclose(found, [[-62.5, -125, 62.5, 125]], rtol=1e-6)


def test_the_limit_is_of_the_log_not_of_the_delta() -> None:
    # a delta of 10 with weight 5 is a log scale of 2, below the limit of log(62.5) = 4.1
    found = decode_boxes(boxes([-1, -1, 1, 1]), float32([[0, 0, 10, -10]]), HEAD).numpy()
    np.testing.assert_allclose(found[0, 2:], [math.exp(2), math.exp(-2)], rtol=1e-6)
