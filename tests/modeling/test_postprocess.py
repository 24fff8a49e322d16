"""From logits to detections: by hand, and against a loop over boxes."""

import math

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.postprocess import Postprocess, recover_sizes
from ppdet_lite.structures import BoxHeadOutput, PackedDetections, Rois
from tests.tiny import float32, int32, iou, random_boxes, rois

UNIT = (1.0, 1.0, 1.0, 1.0)
HEAD = (10.0, 10.0, 5.0, 5.0)
TWO_IMAGES = [(100, 100)] * 2, [(1, 1)] * 2  # their sizes and scales
APART = [[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(5)]


def answer(shares: list[list[float]], deltas: np.ndarray | None = None) -> BoxHeadOutput:
    """Return logits with these softmax probabilities of the object classes; background has the rest."""
    rows = np.array([[*row, 1 - sum(row)] for row in shares], np.float64).reshape(len(shares), -1)
    moved = np.zeros((len(shares), 4 * (rows.shape[1] - 1))) if deltas is None else deltas
    return BoxHeadOutput(paddle.zeros([len(shares), 1]), float32(np.log(rows)), float32(moved))


def detect(
    settings: Postprocess,
    output: BoxHeadOutput,
    packed: Rois,
    sizes: list = ((100, 100),),
    scales: list = ((1, 1),),
    weights: tuple[float, ...] = UNIT,
) -> list[list[tuple]]:
    """Return (class, rounded score, rounded box) of each detection, per image."""
    sizes, scales = float32(sizes), float32(scales)
    found = settings(output, packed, weights, sizes, recover_sizes(sizes, scales), scales)
    check_types(found)
    rows = zip(found.classes.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
    rows = [(c, round(s, 5), [round(v, 4) for v in box]) for c, s, box in rows]
    ends = np.cumsum(found.counts.numpy())
    assert len(rows) == ends[-1]
    return [rows[end - count : end] for end, count in zip(ends, found.counts.tolist(), strict=True)]


def check_types(found: PackedDetections) -> None:
    assert found.boxes.shape == [found.scores.shape[0], 4]
    assert (found.boxes.dtype, found.scores.dtype) == (paddle.float32, paddle.float32)
    assert (found.classes.dtype, found.counts.dtype) == (paddle.int64, paddle.int32)


def test_scores_are_sorted_and_exclude_background() -> None:
    found = detect(Postprocess(0.1), answer([[0.3, 0.2], [0.05, 0.6]]), rois(APART[:2]))
    assert found == [[(1, 0.6, APART[1]), (0, 0.3, APART[0]), (1, 0.2, APART[0])]]


def test_scores_must_be_above_the_threshold() -> None:
    output = BoxHeadOutput(paddle.zeros([1, 1]), float32([[0, 0, 0, 0]]), paddle.zeros([1, 12]))  # 0.25 each
    assert detect(Postprocess(0.25), output, rois(APART[:1])) == [[]]
    assert len(detect(Postprocess(0.2499), output, rois(APART[:1]))[0]) == 3


def test_nothing_above_the_threshold() -> None:
    assert detect(Postprocess(0.5), answer([[0.3, 0.3]] * 2), rois(APART[:1], APART[:1]), *TWO_IMAGES) == [
        [],
        [],
    ]


def test_no_rois() -> None:
    empty = BoxHeadOutput(paddle.zeros([0, 1]), paddle.zeros([0, 4]), paddle.zeros([0, 12]))
    assert detect(Postprocess(), empty, rois([], []), *TWO_IMAGES) == [[], []]


def test_duplicates_are_removed_per_class() -> None:
    box = APART[0]
    found = detect(Postprocess(0.05), answer([[0.3, 0.2], [0.4, 0.1], [0.4, 0.3]]), rois([box] * 3))
    assert found == [[(0, 0.4, box), (1, 0.3, box)]]


def test_images_do_not_suppress_each_other() -> None:
    """The same box in both: as the same class, and as class 1 of the first and class 0 of the second."""
    found = detect(Postprocess(0.05), answer([[0.3], [0.4]]), rois(APART[:1], APART[:1]), *TWO_IMAGES)
    assert found == [[(0, 0.3, APART[0])], [(0, 0.4, APART[0])]]
    found = detect(Postprocess(0.1), answer([[0.05, 0.3], [0.4, 0.05]]), rois(APART[:1], APART[:1]), *TWO_IMAGES)
    assert found == [[(1, 0.3, APART[0])], [(0, 0.4, APART[0])]]


def test_best_of_each_image_are_kept() -> None:
    """Three images with 4, 0 and 3 candidates of two classes; at most two each."""
    shares = [[0.1, 0.2], [0.15, 0.3], [0.01, 0.01], [0.4, 0.02], [0.12, 0.02], [0.02, 0.5]]
    packed = rois([APART[0], APART[1]], [APART[0]], [APART[0], APART[1], APART[2]])
    found = detect(Postprocess(0.05, max_detections=2), answer(shares), packed, [(99, 99)] * 3, [(1, 1)] * 3)
    assert found == [
        [(1, 0.3, APART[1]), (1, 0.2, APART[0])],
        [],
        [(1, 0.5, APART[2]), (0, 0.4, APART[0])],
    ]


def test_equal_scores_keep_the_order_of_the_rois() -> None:
    found = detect(Postprocess(0.05, max_detections=3), answer([[0.3]] * 5), rois(APART), [(99, 99)])
    assert [box for _, _, box in found[0]] == APART[:3]


def test_boxes_are_decoded_clipped_and_mapped_to_the_original() -> None:
    """The input is 60 x 80 (h, w), half as high and twice as wide as the original of 120 x 40."""
    deltas = np.array([[2.0, -2.5, 5 * math.log(2), 0], [0, 30, 0, 0]]) * 1.0
    output = answer([[0.5], [0.4]], deltas)
    packed = rois([[20, 20, 40, 40], [60, 40, 100, 50]])
    found = detect(Postprocess(), output, packed, [(60, 80)], [(0.5, 2)], HEAD)
    # the first: center (34, 25), 40 x 20 -> x 14..54, y 15..35; the second: y 70..80, below the image, has no area
    assert found == [[(0, 0.5, [7, 30, 27, 70])]]


def test_boxes_are_clipped_to_the_original_size() -> None:
    """25 x 27 is resized to 53 x 29: dividing by the scales in float32 gives 25.000002 and 27.000002."""
    scales = float32([[53 / 25, 29 / 27]])
    assert (float32([53, 29]) / scales[0] > float32([25, 27])).all()
    found = Postprocess()(
        answer([[0.5]]), rois([[0, 0, 500, 500]]), UNIT, float32([[53, 29]]), float32([[25, 27]]), scales
    )
    assert found.boxes.tolist() == [[0, 0, 27, 25]]
    assert recover_sizes(float32([[53, 29]]), scales).tolist() == [[25, 27]]


def test_nms_clips_to_the_network_input() -> None:
    """As in the four projects. Both boxes overlap by 0.5 there; the second reaches beyond the border of both sizes."""
    output, packed = answer([[0.9], [0.8]]), rois([[0, 0, 40, 90], [0, 30, 40, 400]])
    sizes, scales = float32([[120, 100]]), float32([[1, 1]])
    assert Postprocess()(output, packed, UNIT, sizes, float32([[119, 100]]), scales).counts.tolist() == [2]
    assert Postprocess()(output, packed, UNIT, float32([[119, 100]]), sizes, scales).counts.tolist() == [1]


def test_sizes_recovered_from_a_rounded_size_are_inexact() -> None:
    """3456 x 5184 at 640 / 5184 is 426.67 x 640."""
    scales = float32([[640 / 5184, 640 / 5184]])
    assert recover_sizes(float32([[427, 640]]), scales).tolist() == [[3459, 5184]]
    assert recover_sizes(float32([[3456 * 640 / 5184, 640]]), scales).tolist() == [[3456, 5184]]


def test_one_box_for_all_classes() -> None:
    output = answer([[0.3, 0.4]], np.array([[1.0, 0, 0, 0]]))
    assert detect(Postprocess(), output, rois(APART[:1])) == [[(1, 0.4, [10, 0, 20, 10]), (0, 0.3, [10, 0, 20, 10])]]


def test_each_class_has_its_own_box() -> None:
    output = answer([[0.3, 0.4]], np.array([[1.0, 0, 0, 0, 0, 2, 0, 0]]))
    assert detect(Postprocess(), output, rois(APART[:1])) == [[(1, 0.4, [0, 20, 10, 30]), (0, 0.3, [10, 0, 20, 10])]]


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("limit", [7, 100])
def test_against_a_loop(class_agnostic: bool, limit: int) -> None:
    rng = np.random.default_rng(17)
    counts, sizes, scales = [20, 0, 35], [(90, 60), (50, 50), (70, 110)], [(0.5, 0.5), (1, 1), (1.4, 1.1)]
    rows, logits = random_boxes(rng, 55, least=8), rng.normal(0, 1.5, (55, 4))
    deltas = rng.normal(0, 0.5, (55, 4 if class_agnostic else 12))
    settings = Postprocess(0.1, 0.4, limit)
    output = BoxHeadOutput(paddle.zeros([55, 1]), float32(logits), float32(deltas))
    originals = [(180, 120), (50, 50), (50, 100)]
    found = settings(
        output, Rois(float32(rows), int32(counts)), HEAD, float32(sizes), float32(originals), float32(scales)
    )
    check_types(found)
    starts = np.cumsum([0, *counts])
    expected = [
        postprocess_loop(rows[a:b], logits[a:b], deltas[a:b], size, scale, settings)
        for a, b, size, scale in zip(starts, starts[1:], sizes, scales)
    ]
    assert found.counts.tolist() == [len(image) for image in expected]
    flat = [item for image in expected for item in image]
    assert found.classes.tolist() == [c for _, c, _ in flat]
    np.testing.assert_allclose(found.scores.numpy(), [s for s, _, _ in flat], rtol=1e-5)
    np.testing.assert_allclose(found.boxes.numpy(), [box for _, _, box in flat], atol=1e-3)
    assert len(flat) > (7 if limit == 7 else 30)


def postprocess_loop(
    rows: np.ndarray, logits: np.ndarray, deltas: np.ndarray, size: tuple, scale: tuple, settings: Postprocess
) -> list[tuple[float, int, list[float]]]:
    """Compute (score, class, box) of one image, box by box."""
    kept: list[tuple[float, int, list[float]]] = []
    candidates = []
    for row, logit, delta in zip(rows.astype(np.float64), logits, deltas, strict=True):
        shares = np.exp(logit) / np.exp(logit).sum()
        for c in range(3):
            dx, dy, dw, dh = (delta if len(delta) == 4 else delta[4 * c : 4 * c + 4]) / HEAD
            w, h = row[2] - row[0], row[3] - row[1]
            x, y = (row[0] + row[2]) / 2 + dx * w, (row[1] + row[3]) / 2 + dy * h
            w, h = w * math.exp(dw), h * math.exp(dh)
            box = [max(x - w / 2, 0), max(y - h / 2, 0), min(x + w / 2, size[1]), min(y + h / 2, size[0])]
            if shares[c] > settings.score_threshold and box[2] > box[0] and box[3] > box[1]:
                candidates.append((shares[c], c, box))
    for score, c, box in sorted(candidates, key=lambda item: -item[0]):
        if all(c != other or iou(box, b) <= settings.nms_iou for _, other, b in kept):
            kept.append((score, c, box))
    sy, sx = scale
    return [(s, c, [b[0] / sx, b[1] / sy, b[2] / sx, b[3] / sy]) for s, c, b in kept[: settings.max_detections]]
