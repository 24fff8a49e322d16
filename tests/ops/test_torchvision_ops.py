"""Operators, anchors and matching against torchvision's numbers (tests/goldens/README.md).

The goldens are float64 results, so a tolerance here is this code's own float32 rounding: a few units in the last place
of the largest number in the calculation (1.2e-7 of a value, 1.5e-5 of a coordinate of 200 pixels). Decisions are exact.
"""

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.anchors import AnchorGenerator
from ppdet_lite.modeling.matching import BACKGROUND, FOREGROUND, IGNORE, Matcher
from ppdet_lite.ops.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes
from ppdet_lite.ops.nms import grouped_nms
from ppdet_lite.ops.roi_align import pyramid_roi_align
from ppdet_lite.ops.roi_levels import pyramid_level
from ppdet_lite.structures import Rois, Targets
from tests.goldens import inputs

GOLDEN = inputs.load()
CODERS = pytest.mark.parametrize(("kind", "weights"), [("unit", (1.0,) * 4), ("scaled", (10.0, 10.0, 5.0, 5.0))])
POOLS = pytest.mark.parametrize("aligned", [False, True])
RATIOS = pytest.mark.parametrize("ratio", [2, -1])


def coder_boxes(which: str) -> paddle.Tensor:
    return paddle.to_tensor(inputs.boxes(f"coder/{which}", 40, (200, 300), (4, 200)))


def alignment(aligned: bool) -> str:
    return "aligned" if aligned else "legacy"


@pytest.mark.parametrize("kind", ["rounded", "exact"])
def test_anchors(kind: str) -> None:
    features = [paddle.zeros([1, 1, inputs.PADDED[0] // s, inputs.PADDED[1] // s]) for s in inputs.STRIDES]
    generator = AnchorGenerator(inputs.SIZES, inputs.RATIOS, rounded=kind == "rounded")
    base = np.stack([generator.base_anchors(size) for size in inputs.SIZES])
    np.testing.assert_allclose(base, GOLDEN[f"anchors/{kind}/base"], rtol=1e-7)
    levels = generator(features, inputs.STRIDES)
    assert [len(level) for level in levels] == GOLDEN["anchors/counts"].tolist()
    for i, level in enumerate(levels):
        sample = level.numpy()[inputs.positions(f"anchors/{i}", len(level), 24)]
        np.testing.assert_allclose(sample, GOLDEN[f"anchors/{kind}/{i}"], rtol=0, atol=5e-6)


@CODERS
def test_encode(kind: str, weights: tuple[float, ...]) -> None:
    deltas = encode_boxes(coder_boxes("a"), coder_boxes("b"), weights)
    np.testing.assert_allclose(deltas.numpy(), GOLDEN[f"coder/{kind}/encode"], rtol=5e-7, atol=1e-6 * weights[0])


@CODERS
def test_decode_clamps_growth(kind: str, weights: tuple[float, ...]) -> None:
    deltas = inputs.uniform("coder/deltas", (40, 12), -6, 6) * np.tile(np.array(weights, np.float32), 3)
    assert (deltas.reshape(-1, 4)[:, 2] / weights[2] > np.log(1000 / 16)).sum() > 10
    boxes = decode_boxes(coder_boxes("a").unsqueeze(1), paddle.to_tensor(deltas).reshape([40, 3, 4]), weights)
    expected = GOLDEN[f"coder/{kind}/decode"].reshape(40, 3, 4)
    np.testing.assert_allclose(boxes.numpy(), expected, rtol=5e-7, atol=1e-4)


def test_iou() -> None:
    boxes = paddle.to_tensor(inputs.boxes("nms", 300, (90, 120), (20, 60)))
    iou = box_iou(boxes[:40], boxes[40:80]).numpy()
    np.testing.assert_allclose(iou, GOLDEN["iou"], rtol=0, atol=3e-7)


def test_clip() -> None:
    clipped = clip_boxes(coder_boxes("a"), paddle.to_tensor([150.0, 220.0]))
    np.testing.assert_array_equal(clipped.numpy(), GOLDEN["clip"])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("grouped", [False, True])
def test_nms(threshold: float, grouped: bool) -> None:
    boxes = paddle.to_tensor(inputs.boxes("nms", 300, (90, 120), (20, 60)))
    scores = paddle.to_tensor(inputs.distinct_scores("nms/scores", 300))
    groups = inputs.uniform("nms/groups", (300,), 0, 4).astype(np.int64) * int(grouped)
    kept = grouped_nms(boxes, scores, paddle.to_tensor(groups), threshold)
    name = "batched_nms" if grouped else "nms"
    np.testing.assert_array_equal(kept.numpy(), GOLDEN[f"{name}/{threshold}"])


@pytest.mark.parametrize(
    ("name", "matcher"), [("low_quality", Matcher(0.7, 0.3, keep_best=True)), ("plain", Matcher(0.5, 0.5))]
)
def test_matching(name: str, matcher: Matcher) -> None:
    objects, boxes = map(paddle.to_tensor, inputs.matching_case())
    targets = Targets(objects, paddle.zeros([9], dtype="int64"), paddle.zeros([0, 4]))
    matches = matcher(boxes, targets)
    expected = GOLDEN[f"matching/{name}"]  # the object's index, -1 background, -2 ignored
    labels = np.where(expected >= 0, FOREGROUND, np.where(expected == -1, BACKGROUND, IGNORE))
    np.testing.assert_array_equal(matches.labels.numpy(), labels)
    foreground = expected >= 0
    np.testing.assert_array_equal(matches.target_index.numpy()[foreground], expected[foreground])


def pool_one_map(ratio: int, aligned: bool) -> tuple[paddle.Tensor, paddle.Tensor]:
    source, boxes, counts = inputs.roi_align_case()
    leaf = paddle.to_tensor(source, stop_gradient=False)
    rois = Rois(paddle.to_tensor(boxes), paddle.to_tensor(counts))
    level = paddle.zeros([20], dtype="int64")
    return leaf, pyramid_roi_align([leaf], [4], rois, level, 3, max(ratio, 0), aligned)


@POOLS
@RATIOS
def test_roi_align(ratio: int, aligned: bool) -> None:
    pooled = pool_one_map(ratio, aligned)[1].numpy()
    np.testing.assert_allclose(pooled, GOLDEN[f"roi_align/{ratio}/{alignment(aligned)}"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("part", ["large", "tiny"])
@POOLS
@RATIOS
def test_gradient_of_roi_align(ratio: int, aligned: bool, part: str) -> None:
    leaf, pooled = pool_one_map(ratio, aligned)
    (pooled * paddle.to_tensor(inputs.roi_align_cotangent(part))).sum().backward()
    name = f"roi_align/{ratio}/{alignment(aligned)}/gradient/{part}"
    gradient = leaf.grad.numpy().flatten()[inputs.positions(name, leaf.size, 300)]
    np.testing.assert_allclose(gradient, GOLDEN[name], rtol=0, atol=5e-6)


def test_pyramid_levels() -> None:
    _, boxes, _ = inputs.pyramid_case()
    level = pyramid_level(paddle.to_tensor(boxes), 4, 224.0, 2).numpy()
    np.testing.assert_array_equal(level, GOLDEN["pyramid/levels"])
    assert set(level) == {0, 1, 2, 3}


@POOLS
@RATIOS
def test_pyramid_pooling(ratio: int, aligned: bool) -> None:
    maps, boxes, counts = inputs.pyramid_case()
    rois = Rois(paddle.to_tensor(boxes), paddle.to_tensor(counts))
    level = paddle.to_tensor(GOLDEN["pyramid/levels"].astype(np.int64))
    features = [paddle.to_tensor(m) for m in maps]
    pooled = pyramid_roi_align(features, inputs.STRIDES[:4], rois, level, 3, max(ratio, 0), aligned)
    expected = GOLDEN[f"pyramid/{ratio}/{alignment(aligned)}"]
    np.testing.assert_allclose(
        pooled.numpy(), expected, rtol=0, atol=1e-5
    )  # sample points at up to 160 cells carry 1e-5
