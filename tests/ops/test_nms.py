"""NMS in groups against a greedy loop, and the counting of group members."""

import numpy as np
import paddle
import pytest

from ppdet_lite.ops.nms import count_groups, grouped_nms, nms_mask, rank_in_group
from tests.tiny import boxes, float32, int64, iou, random_boxes


def greedy_nms(rows: np.ndarray, scores: np.ndarray, groups: np.ndarray, threshold: float) -> list[int]:
    """Repeatedly keep the best box and drop those of its group that overlap it; equal scores in their order."""
    rows, left, kept = rows.astype(np.float64), np.argsort(-scores, kind="stable").tolist(), []
    while left:
        best, *rest = left
        kept.append(best)
        left = [i for i in rest if groups[i] != groups[best] or iou(rows[i], rows[best]) <= threshold]
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("group_count", [1, 4])
def test_against_a_greedy_loop(threshold: float, group_count: int) -> None:
    rng = np.random.default_rng(11)
    rows = random_boxes(rng, 120, size=60) - 20  # some coordinates are negative
    scores = rng.permutation(120).astype(np.float32) / 120
    groups = rng.integers(0, group_count, 120)
    found = grouped_nms(float32(rows), float32(scores), int64(groups), threshold)
    assert found.dtype == paddle.int64
    assert found.tolist() == greedy_nms(rows, scores, groups, threshold)


def test_equal_scores_keep_their_order() -> None:
    rng = np.random.default_rng(12)
    rows, groups = random_boxes(rng, 90, size=50), rng.integers(0, 3, 90)
    scores = rng.integers(0, 4, 90).astype(np.float32)
    found = grouped_nms(float32(rows), float32(scores), int64(groups), 0.4).tolist()
    assert found == greedy_nms(rows, scores, groups, 0.4)


def test_an_overlap_of_exactly_the_threshold_stays() -> None:
    rows, scores, groups = boxes([0, 0, 2, 2], [0, 0, 2, 1]), float32([0.9, 0.8]), int64([0, 0])
    assert grouped_nms(rows, scores, groups, 0.5).tolist() == [0, 1]
    assert grouped_nms(rows, scores, groups, 0.499).tolist() == [0]


def test_duplicates() -> None:
    rows = boxes(*[[3, 4, 9, 8]] * 5)
    found = grouped_nms(rows, float32([0.1, 0.5, 0.5, 0.2, 0.3]), int64([0, 0, 0, 7, 7]), 0.5)
    assert found.tolist() == [1, 4]


def test_no_boxes() -> None:
    found = grouped_nms(boxes(), float32(np.zeros(0)), int64([]), 0.5)
    assert (found.shape, found.dtype) == ([0], paddle.int64)


def test_a_far_group_is_as_exact_as_the_first() -> None:
    """In float32 the shift of group 639 (class 79 of image 7) would round these corners to a quarter of a pixel."""
    rng = np.random.default_rng(13)
    corner = rng.uniform(1300, 1330, (200, 2))
    rows = np.concatenate([corner, corner + rng.uniform(3, 6, (200, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(200).astype(np.float32)
    near, far = (
        grouped_nms(float32(rows), float32(scores), paddle.full([200], group, "int64"), 0.3).tolist()
        for group in (0, 639)
    )
    assert near == far == greedy_nms(rows, scores, np.zeros(200), 0.3)


@pytest.mark.parametrize(("group_count", "count"), [(1, 50), (3, 120), (2, 2)])
def test_nms_mask(group_count: int, count: int) -> None:
    """Scores in any order, some equal."""
    rng = np.random.default_rng(14)
    rows, groups = random_boxes(rng, count, size=50), np.arange(count) % group_count
    scores = rng.integers(0, 30, count).astype(np.float32)
    found = nms_mask(float32(rows), float32(scores), int64(groups), 0.4)
    assert found.dtype == paddle.bool
    assert np.flatnonzero(found.numpy()).tolist() == sorted(greedy_nms(rows, scores, groups, 0.4))


def test_shifted_groups_do_not_overlap() -> None:
    rows = boxes([0, 0, 1, 1], [-1, -1, 1, 1], [-1, -1, 0, 0], [-1, -1, 1, 1])
    found = grouped_nms(rows, float32([4, 3, 2, 1]), int64([0, 1, 2, 3]), 0.0)
    assert found.tolist() == [0, 1, 2, 3]


def test_rank_in_group() -> None:
    assert rank_in_group(int64([2, 0, 2, 2, 0]), 4).tolist() == [0, 0, 1, 2, 1]
    assert rank_in_group(int64([]), 3).shape == [0]


def test_count_groups() -> None:
    counts = count_groups(int64([2, 0, 2, 2, 0]), 4)
    assert (counts.tolist(), counts.dtype) == ([2, 0, 3, 0], paddle.int32)
    assert count_groups(int64([]), 2).tolist() == [0, 0]
