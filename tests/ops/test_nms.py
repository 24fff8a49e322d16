"""NMS in groups against a greedy loop, the cost of its calls, and the counting of group members."""

from collections.abc import Callable

import numpy as np
import paddle
import pytest
from paddle import Tensor
from paddle.static import InputSpec

from ppdet_lite.ops import dispatch, nms
from ppdet_lite.ops.nms import count_groups, grouped_nms, nms_mask, rank_in_group
from tests.tiny import boxes, float32, int64, iou, random_boxes

UNTRAINED = 4, 15, 1000  # images, classes and RoIs whose scores all exceed the threshold: 1/16 > 0.05


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


def traced(iou_threshold: float) -> Callable[..., Tensor]:
    """Return `grouped_nms` as a graph for any number of boxes."""

    def run(boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        return grouped_nms(boxes, scores, groups, iou_threshold)

    inputs = [InputSpec([-1, 4], "float32"), InputSpec([-1], "float32"), InputSpec([-1], "int64")]
    return paddle.jit.to_static(run, inputs, full_graph=True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that receives the number of boxes in each call of Paddle's NMS, which then keeps all of them."""
    sizes: list[int] = []

    def keep_all(shifted: Tensor, _: float) -> Tensor:
        sizes.append(shifted.shape[0])
        return paddle.arange(shifted.shape[0], dtype="int64")

    monkeypatch.setattr(nms, "nms", keep_all)
    return sizes


def test_no_boxes() -> None:
    for function in (lambda *tensors: grouped_nms(*tensors, 0.5), traced(0.5)):
        found = function(boxes(), float32(np.zeros(0)), int64([]))
        assert (found.shape, found.dtype) == ([0], paddle.int64)
    assert nms_mask(boxes(), float32(np.zeros(0)), int64([]), 0.5).shape == [0]


@pytest.mark.parametrize("on_cpu", [True, False])
def test_no_boxes_take_no_call(on_cpu: bool, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle's kernel for a GPU launches an empty grid for no boxes, which CUDA refuses."""
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: on_cpu)
    assert grouped_nms(boxes(), float32(np.zeros(0)), int64([]), 0.5).tolist() == []
    assert nms_mask(boxes(), float32(np.zeros(0)), int64([]), 0.5).tolist() == []
    assert calls == []


def test_no_boxes_take_no_call_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is traced with an NMS that keeps the first box, even if there is none."""
    monkeypatch.setattr(paddle._C_ops, "nms", lambda *_: paddle.zeros([1], dtype="int64"))
    graph = traced(0.5)
    assert graph(boxes(), float32(np.zeros(0)), int64([])).tolist() == []
    assert graph(boxes([0, 0, 1, 1], [5, 5, 6, 6]), float32([1, 2]), int64([0, 0])).tolist() == [1]


@pytest.mark.parametrize("limit", [1, 8, 100, 1000])
def test_any_number_of_boxes_per_call_keeps_the_same(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of 0 to 150 boxes, more or fewer than a call has, with ten different scores; eager and traced."""
    monkeypatch.setattr(nms, "BOXES_PER_CALL", limit)
    rng = np.random.default_rng(15)
    groups = np.concatenate([np.full(150, 17), np.full(99, 3), rng.choice(np.arange(20, 90, 3), 150), [5], [640]])
    rng.shuffle(groups)
    rows, scores = random_boxes(rng, len(groups), size=40), rng.integers(0, 10, len(groups)) / np.float32(10)
    tensors = float32(rows), float32(scores), int64(groups)
    expected = greedy_nms(rows, scores, groups, 0.3)
    assert 100 < len(expected) < 300
    assert grouped_nms(*tensors, 0.3).tolist() == expected
    assert traced(0.3)(*tensors).tolist() == expected
    assert np.flatnonzero(nms_mask(*tensors, 0.3).numpy()).tolist() == sorted(expected)


@pytest.mark.parametrize(("on_cpu", "largest", "count"), [(True, 1000, 60), (False, 4000, 15)])
def test_cost_grows_with_the_boxes_of_a_group(
    on_cpu: bool, largest: int, count: int, calls: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained detector has 60,000 candidates. Paddle's cost is the square of the boxes in each call."""
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: on_cpu)
    images, classes, rois = UNTRAINED
    groups = np.random.default_rng(16).permutation(np.repeat(np.arange(images * classes), rois))
    rows = np.tile(np.float32([0, 0, 1, 1]), (len(groups), 1))
    kept = grouped_nms(float32(rows), paddle.zeros([len(groups)]), int64(groups), 0.5)
    assert kept.tolist() == list(range(len(groups)))
    assert (max(calls), len(calls), sum(calls)) == (largest, count, len(groups))


@pytest.mark.parametrize("limit", [1, 7, 64])
def test_whole_groups_are_packed_into_calls(limit: int, calls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 1 + 2 * D / BOXES_PER_CALL calls, each of BOXES_PER_CALL boxes or one group."""
    monkeypatch.setattr(nms, "BOXES_PER_CALL", limit)
    sizes = np.random.default_rng(17).integers(1, 2 * limit, 40).tolist()
    groups = np.repeat(np.arange(40) * 2, sizes)
    grouped_nms(paddle.zeros([len(groups), 4]), paddle.zeros([len(groups)]), int64(groups), 0.5)
    expected = [0]
    for size in sizes:
        if expected[-1] and expected[-1] + size > limit:
            expected.append(0)
        expected[-1] += size
    assert calls == expected and len(calls) <= 1 + 2 * len(groups) / limit


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
