"""Matching by hand and against a loop over boxes; sampling."""

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling import matching
from ppdet_lite.modeling.matching import BACKGROUND, FOREGROUND, IGNORE, Matcher, Sampler
from ppdet_lite.ops.boxes import box_coverage, box_iou
from tests.tiny import area, boxes, float32, int64, iou, overlap, random_boxes, targets

TRUTH = [0, 0, 10, 10]


def match_loop(rows: np.ndarray, truth: np.ndarray, is_crowd: np.ndarray, matcher: Matcher) -> list[int]:
    """Compute the label of each box, pair by pair, in float64."""
    rows, truth = rows.astype(np.float64), truth.astype(np.float64)
    objects, crowds = truth[~is_crowd], truth[is_crowd]
    overlaps = np.array([[iou(a, b) for b in objects] for a in rows])
    labels = []
    for i, row in enumerate(rows):
        best = max(overlaps[i], default=0.0)
        claimed = any(overlaps[i, g] == max(overlaps[:, g]) > 0 for g in range(len(objects)))
        if best >= matcher.foreground_iou or (matcher.keep_best and claimed):
            labels.append(FOREGROUND)
        elif best >= matcher.background_iou or any(
            overlap(row, c) / area(row) >= matcher.crowd_coverage for c in crowds
        ):
            labels.append(IGNORE)
        else:
            labels.append(BACKGROUND)
    return labels


def test_thresholds_are_inclusive() -> None:
    """IoU 0.5, just below, 0.25 and just below; both thresholds are exact in float32."""
    rows = boxes([0, 0, 10, 5], [0, 0, 10, 4.999], [0, 0, 5, 5], [0, 0, 5, 4.999])
    matches = Matcher(0.5, 0.25)(rows, targets([TRUTH]))
    assert matches.labels.tolist() == [FOREGROUND, IGNORE, IGNORE, BACKGROUND]
    assert matches.labels.dtype == matches.target_index.dtype == paddle.int64


def test_equal_thresholds_ignore_no_box() -> None:
    matches = Matcher(0.5, 0.5)(boxes([0, 0, 10, 5], [0, 0, 10, 4.9]), targets([TRUTH]))
    assert matches.labels.tolist() == [FOREGROUND, BACKGROUND]


def test_a_box_is_matched_with_the_highest_iou() -> None:
    truth = targets([[0, 0, 10, 10], [0, 0, 10, 8], [50, 50, 60, 60], [50, 50, 60, 60]])
    matches = Matcher(0.5, 0.3)(boxes([0, 0, 10, 8], [0, 0, 10, 9.5], [50, 50, 60, 60], [90, 90, 99, 99]), truth)
    assert matches.target_index.tolist()[:3] == [1, 0, 2]  # of two equal truths the first
    assert matches.labels.tolist() == [FOREGROUND] * 3 + [BACKGROUND]


def test_keep_best() -> None:
    rows = boxes([0, 0, 10, 2], [0, 8, 10, 10], [0, 0, 10, 1], [40, 40, 50, 50])
    truth = targets([TRUTH, [80, 80, 90, 90]])  # the second overlaps no box, and claims none
    assert Matcher(0.7, 0.3)(rows, truth).labels.tolist() == [BACKGROUND] * 4
    matches = Matcher(0.7, 0.3, keep_best=True)(rows, truth)
    assert matches.labels.tolist() == [FOREGROUND, FOREGROUND, BACKGROUND, BACKGROUND]
    assert matches.target_index.tolist()[:2] == [0, 0]


def test_keep_best_does_not_change_the_match() -> None:
    """The only box is the best of both ground truths; its match is the one with the higher IoU."""
    matches = Matcher(0.7, 0.3, keep_best=True)(boxes([0, 0, 10, 10]), targets([[0, 0, 10, 2], [0, 0, 10, 4]]))
    assert (matches.labels.tolist(), matches.target_index.tolist()) == ([FOREGROUND], [1])


def test_a_box_in_a_crowd_is_neither_object_nor_background() -> None:
    truth = targets([[100, 100, 200, 200], TRUTH], crowd=[True, False])
    rows = boxes(
        [100, 100, 110, 110],  # inside the crowd
        [95, 100, 105, 110],  # half inside
        [94, 100, 104, 110],  # less than half
        [100, 100, 200, 200],  # the crowd itself
        [0, 0, 1000, 1000],  # holds the crowd
        [0, 0, 10, 10],  # the object
    )
    matches = Matcher(0.5, 0.3)(rows, truth)
    assert matches.labels.tolist() == [IGNORE, IGNORE, BACKGROUND, IGNORE, BACKGROUND, FOREGROUND]
    assert matches.target_index[-1].item() == 0  # counted without the crowd
    stricter = Matcher(0.5, 0.3, crowd_coverage=0.6)(rows, truth)
    assert stricter.labels.tolist()[:3] == [IGNORE, BACKGROUND, BACKGROUND]


def test_without_crowd_coverage_boxes_in_a_crowd_are_background() -> None:
    """As if the crowd were not annotated: detectron2, torchvision and PaddleDetection leave crowd regions out."""
    rows = boxes([100, 100, 110, 110], [100, 100, 200, 200], [0, 0, 10, 4], [0, 0, 10, 10])
    truth = targets([[100, 100, 200, 200], TRUTH], crowd=[True, False])
    matches = Matcher(0.5, 0.3, crowd_coverage=None)(rows, truth)
    assert matches.labels.tolist() == [BACKGROUND, BACKGROUND, IGNORE, FOREGROUND]  # IoU 0, 0, 0.4, 1
    assert matches.target_index[3].item() == 0
    crowd = targets([[0, 0, 300, 300]], crowd=[True])
    assert Matcher(crowd_coverage=None)(rows, crowd).labels.tolist() == [BACKGROUND] * 4
    assert Matcher(crowd_coverage=0.0)(rows, truth).labels.tolist() == [IGNORE, IGNORE, IGNORE, FOREGROUND]


def test_an_object_inside_a_crowd_stays_an_object() -> None:
    truth = targets([[0, 0, 100, 100], TRUTH], crowd=[True, False])
    matches = Matcher(0.7, 0.3, keep_best=True)(boxes([0, 0, 10, 9], [0, 0, 10, 6], [30, 30, 40, 40]), truth)
    assert matches.labels.tolist() == [FOREGROUND, IGNORE, IGNORE]
    matches = Matcher(0.7, 0.3, keep_best=True)(boxes([0, 0, 10, 2], [30, 30, 40, 40]), truth)
    assert matches.labels.tolist() == [FOREGROUND, IGNORE]  # claimed though IoU is 0.2


def test_only_crowds() -> None:
    truth = targets([[0, 0, 50, 50], [60, 60, 70, 70]], crowd=[True, True])
    matches = Matcher(0.7, 0.3, keep_best=True)(boxes([0, 0, 9, 9], [60, 60, 64, 64], [80, 0, 90, 9]), truth)
    assert matches.labels.tolist() == [IGNORE, IGNORE, BACKGROUND]
    assert matches.target_index.tolist() == [0, 0, 0]


def test_coverages_of_two_crowds_are_not_added() -> None:
    truth = targets([[0, 0, 4, 10], [6, 0, 10, 10]], crowd=[True, True])
    assert Matcher()(boxes([0, 0, 10, 10]), truth).labels.tolist() == [BACKGROUND]


def test_no_ground_truth() -> None:
    matches = Matcher(0.7, 0.3, keep_best=True)(boxes(TRUTH, TRUTH), targets())
    assert (matches.labels.tolist(), matches.target_index.tolist()) == ([BACKGROUND] * 2, [0, 0])


def test_no_boxes() -> None:
    for truth in (targets(), targets([TRUTH])):
        assert Matcher(0.5, 0.5)(boxes(), truth).labels.shape == [0]


@pytest.mark.parametrize(
    "matcher", [Matcher(0.7, 0.3, keep_best=True), Matcher(0.5, 0.5), Matcher(0.6, 0.1, True, 0.9)]
)
def test_against_a_loop(matcher: Matcher) -> None:
    rng = np.random.default_rng(21)
    rows, truth = random_boxes(rng, 150, size=60), random_boxes(rng, 8, size=60, least=8)
    is_crowd = np.arange(8) % 4 == 3
    labels = matcher(float32(rows), targets(truth, crowd=is_crowd)).labels.tolist()
    assert labels == match_loop(rows, truth, is_crowd, matcher)
    assert {BACKGROUND, FOREGROUND, IGNORE} == set(labels)


def test_a_large_iou_matrix_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory does not grow with the number of pairs, and results do not change, even for ties across parts."""
    rng, matcher, pairs = np.random.default_rng(4), Matcher(0.7, 0.3, keep_best=True), []
    rows = float32(np.tile(random_boxes(rng, 50, size=60), (3, 1)))
    truth = targets(random_boxes(rng, 9, size=60, least=8))
    whole = matcher(rows, truth)

    def counted(first: paddle.Tensor, second: paddle.Tensor) -> paddle.Tensor:
        pairs.append(len(first) * len(second))
        return box_iou(first, second)

    monkeypatch.setattr(matching, "MAX_PAIRS", 9 * 40)
    monkeypatch.setattr(matching, "box_iou", counted)
    parts = matcher(rows, truth)
    assert max(pairs) == 9 * 40 and len(pairs) == 3 * 4
    assert parts.labels.tolist() == whole.labels.tolist() and parts.target_index.tolist() == whole.target_index.tolist()
    assert whole.labels.tolist().count(FOREGROUND) in range(3, 9 * 3 + 1, 3)  # each in every copy
    monkeypatch.setattr(matching, "MAX_PAIRS", 1)  # fewer than there are objects
    assert matcher(rows, truth).labels.tolist() == whole.labels.tolist()


def test_a_large_coverage_matrix_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, matcher, pairs = np.random.default_rng(5), Matcher(0.7, 0.3), []
    rows = float32(random_boxes(rng, 90, size=60))
    truth = targets(random_boxes(rng, 9, size=60, least=8), crowd=[True] * 9)
    whole = matcher(rows, truth).labels.tolist()

    def counted(first: paddle.Tensor, second: paddle.Tensor) -> paddle.Tensor:
        pairs.append(len(first) * len(second))
        return box_coverage(first, second)

    monkeypatch.setattr(matching, "MAX_PAIRS", 9 * 40)
    monkeypatch.setattr(matching, "box_coverage", counted)
    assert matcher(rows, truth).labels.tolist() == whole and {IGNORE, BACKGROUND} == set(whole)
    assert pairs == [9 * 40, 9 * 40, 9 * 10]
    assert matcher(float32(np.zeros((0, 4))), truth).labels.tolist() == []


def test_background_must_not_be_above_foreground() -> None:
    with pytest.raises(ValueError) as error:
        Matcher(0.3, 0.7)
    assert "background_iou: 0.7 is above foreground_iou 0.3" in str(error.value)


LABELS = [FOREGROUND] * 20 + [BACKGROUND] * 60 + [IGNORE] * 20


@pytest.mark.parametrize(
    ("labels", "sampler", "foreground", "background"),
    [
        (LABELS, Sampler(16, 0.25), 4, 12),
        (LABELS, Sampler(64, 0.5), 20, 44),  # less foreground than its share: background fills up
        (LABELS, Sampler(256, 0.5), 20, 60),  # all there is
        (LABELS, Sampler(10, 0.0), 0, 10),
        (LABELS, Sampler(10, 1.0), 10, 0),
        (LABELS, Sampler(3, 0.5), 1, 2),  # the share is rounded down
        ([IGNORE] * 9, Sampler(4, 0.5), 0, 0),
        ([FOREGROUND] * 9, Sampler(4, 0.5), 2, 0),
        ([], Sampler(4, 0.5), 0, 0),
    ],
)
def test_number_of_samples(labels: list[int], sampler: Sampler, foreground: int, background: int) -> None:
    paddle.seed(0)
    (drawn,) = sampler([int64(labels)])
    for indices, kind, count in zip(drawn, (FOREGROUND, BACKGROUND), (foreground, background), strict=True):
        indices = indices.tolist()
        assert len(indices) == count
        assert indices == sorted(set(indices))
        assert all(labels[i] == kind for i in indices)


def test_every_candidate_is_sampled_equally_often() -> None:
    paddle.seed(1)
    counts = np.zeros(100, int)
    for _ in range(300):
        ((foreground, background),) = Sampler(20, 0.5)([int64(LABELS)])
        counts[foreground.numpy()] += 1
        counts[background.numpy()] += 1
    # binomial, n = 300: 150 +- 8.7 (10 of 20), 50 +- 6.5 (10 of 60); limits at 4 deviations
    assert np.abs(counts[:20] - 150).max() < 35
    assert np.abs(counts[20:80] - 50).max() < 26
    assert not counts[80:].any()


def test_sampling_depends_on_paddles_seed() -> None:
    draws = []
    for seed in (5, 5, 6):
        paddle.seed(seed)
        draws.append(Sampler(16, 0.5)([int64(LABELS)])[0][1].tolist())
    assert draws[0] == draws[1] != draws[2]


def test_images_are_sampled_in_order() -> None:
    """Each image is sampled as by itself, with the generator's next random numbers."""
    images = [int64(LABELS), int64([]), int64([BACKGROUND] * 30), int64(LABELS[::-1])]
    paddle.seed(7)
    alone = [[part.tolist() for part in Sampler(16, 0.5)([labels])[0]] for labels in images]
    paddle.seed(7)
    assert [[part.tolist() for part in drawn] for drawn in Sampler(16, 0.5)(images)] == alone
