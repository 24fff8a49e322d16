"""RoIAlign over a pyramid against loops over samples, and the assignment of RoIs to levels."""

import math
from collections.abc import Sequence

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.roi_pool import RoIAlign
from ppdet_lite.ops import dispatch
from ppdet_lite.ops.roi_align import pyramid_roi_align
from ppdet_lite.ops.roi_levels import image_of_roi, pool_by_level, pyramid_level, square_level
from ppdet_lite.structures import Rois
from tests.tiny import boxes, float32, int32, int64, rois


@pytest.fixture(params=["cpu", "gpu"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The device whose implementation runs; a GPU's is Paddle's operator, also tested on a CPU."""
    if request.param == "gpu":
        monkeypatch.setattr(dispatch, "on_cpu", lambda _: False)
    return request.param


def bilinear(plane: np.ndarray, y: float, x: float) -> float:
    """Interpolate [H, W] bilinearly; up to one pixel outside, the border's value; 0 farther out."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 2), min(int(x), width - 2)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, left + 1] * dx
    lower = plane[top + 1, left] * (1 - dx) + plane[top + 1, left + 1] * dx
    return upper * (1 - dy) + lower * dy


def align_loop(
    feature: np.ndarray, box: Sequence[float], scale: float, size: int, ratio: int, aligned: bool
) -> np.ndarray:
    """Compute RoIAlign of one box, sample by sample: [C, H, W] -> [C, P, P]."""
    shift = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (v * scale - shift for v in box)
    width, height = x2 - x1, y2 - y1
    if not aligned:
        width, height = max(width, 1.0), max(height, 1.0)
    ny, nx = ratio or math.ceil(height / size), ratio or math.ceil(width / size)
    out = np.zeros((len(feature), size, size))
    for c, i, j in np.ndindex(out.shape):
        samples = [
            bilinear(feature[c], y1 + (i + (a + 0.5) / ny) * height / size, x1 + (j + (b + 0.5) / nx) * width / size)
            for a in range(ny)
            for b in range(nx)
        ]
        out[c, i, j] = sum(samples) / max(len(samples), 1)
    return out


def test_image_of_roi() -> None:
    assert image_of_roi(int32([2, 0, 3, 0]), 5).tolist() == [0, 0, 2, 2, 2]
    assert image_of_roi(int32([0, 0]), 0).shape == [0]


@pytest.mark.parametrize(
    ("side", "level"),
    [(0, 0), (1, 0), (55.9, 0), (56, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (448, 3), (447.9, 2), (5000, 3)],
)
def test_level_of_a_square(side: float, level: int) -> None:
    assert pyramid_level(boxes([7, 7, 7 + side, 7 + side]), 4, 224.0, 2).tolist() == [level]
    assert square_level(side, 4, 224.0, 2) == level


def test_rounding_does_not_lower_the_level() -> None:
    """In float32 this box is 223.99998 wide."""
    corner = np.float32(32.24)
    box = boxes([corner, corner, corner + 224, corner + 224])
    assert (box[0, 2] - box[0, 0]).item() < 224
    assert pyramid_level(box, 4, 224.0, 2).tolist() == [2]


def test_level_depends_only_on_the_area() -> None:
    found = pyramid_level(boxes([0, 0, 448, 112], [0, 0, 100, 450], [0, 0, 0, 900]), 4, 224.0, 2)
    assert (found.tolist(), found.dtype) == ([2, 1, 0], paddle.int64)


def test_level_with_other_canonical_values() -> None:
    assert pyramid_level(boxes([0, 0, 50, 50], [0, 0, 99, 99], [0, 0, 100, 100]), 2, 100.0, 1).tolist() == [0, 0, 1]


def test_pooled_rows_keep_the_order_of_the_rois() -> None:
    """The pooling function returns its input: level, image and corner of each RoI."""
    packed = rois([[0, 0, 1, 1], [1, 0, 2, 1]], [], [[2, 0, 3, 1], [3, 0, 4, 1], [4, 0, 5, 1]])
    calls = []

    def pool(level: int, feature: paddle.Tensor, part: Rois) -> paddle.Tensor:
        calls.append((level, feature.shape[2], part.counts.tolist()))
        image = image_of_roi(part.counts, part.boxes.shape[0]).astype("float32")
        return paddle.stack([part.boxes[:, 0], image, paddle.full_like(image, level)], axis=1)

    features = [paddle.zeros([3, 1, side, side]) for side in (8, 4, 2)]
    found = pool_by_level(features, packed, int64([2, 0, 2, 0, 2]), pool)
    assert found.tolist() == [[0, 0, 2], [1, 0, 0], [2, 2, 2], [3, 2, 0], [4, 2, 2]]
    assert calls == [(0, 8, [1, 0, 1]), (1, 4, [0, 0, 0]), (2, 2, [1, 0, 2])]


def test_a_linear_map_by_hand() -> None:
    """On f(y, x) = 10y + x a bin's mean is f at its center; 8 px a cell, the half-pixel shift moves by (0.5, 0.5)."""
    rows, columns = np.mgrid[:6, :6]
    feature = float32((10 * rows + columns)[None, None])
    packed = rois([[8, 16, 40, 32]])  # in cells: x 1..5, y 2..4
    for ratio in (0, 1, 2, 3):
        pooled = pyramid_roi_align([feature], [8], packed, int64([0]), 2, ratio, aligned=False)
        np.testing.assert_allclose(pooled.numpy()[0, 0], [[27, 29], [37, 39]], atol=1e-5)
        shifted = pyramid_roi_align([feature], [8], packed, int64([0]), 2, ratio, aligned=True)
        np.testing.assert_allclose(shifted.numpy()[0, 0], [[21.5, 23.5], [31.5, 33.5]], atol=1e-5)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 1, 2])
def test_against_a_loop_over_samples(ratio: int, aligned: bool) -> None:
    rng = np.random.default_rng(4)
    maps = [rng.standard_normal((3, 2, 64 // s, 96 // s)).astype(np.float32) for s in (4, 8, 16)]
    images = (
        [[3, 4, 20, 50], [-6, -3, 9, 9], [10.3, 20.7, 11, 21]],  # the second leaves the image, the third is a speck
        [],
        [[0, 0, 96, 64], [80, 50, 110, 75]],
    )
    level = [1, 0, 0, 2, 0]
    pooled = pyramid_roi_align(
        [float32(m) for m in maps], [4, 8, 16], rois(*images), int64(level), 2, ratio, aligned
    ).numpy()
    flat = [(image, box) for image, rows in enumerate(images) for box in rows]
    expected = [
        align_loop(maps[place][image], box, 1 / (4 * 2**place), 2, ratio, aligned)
        for place, (image, box) in zip(level, flat, strict=True)
    ]
    np.testing.assert_allclose(pooled, expected, atol=2e-5)


@pytest.mark.usefixtures("device")
def test_component_pools_from_the_finest_levels_only() -> None:
    """Constant maps show the level: sides 56, 224 and 448 use strides 4, 16 and 32; none uses stride 64."""
    features = [paddle.full([1, 1, 1024 // s, 1024 // s], float(s)) for s in (4, 8, 16, 32, 64)]
    pool = RoIAlign([4, 8, 16, 32, 64], output_size=3)
    packed = rois([[10, 10, 458, 458], [10, 10, 66, 66], [10, 10, 234, 234], [0, 0, 1000, 1000]])
    pooled = pool(features, packed)
    assert pooled.shape == [4, 1, 3, 3]
    np.testing.assert_allclose(pooled.numpy().mean(axis=(1, 2, 3)), [32, 4, 16, 32], rtol=1e-6)


@pytest.mark.usefixtures("device")
def test_no_rois_at_all() -> None:
    features = [paddle.ones([2, 5, 16 // s, 16 // s]) for s in (1, 2, 4, 8)]
    pool = RoIAlign([4, 8, 16, 32], output_size=3)
    assert pool(features, rois([], [])).shape == [0, 5, 3, 3]


PYRAMID = [
    np.random.default_rng(6).standard_normal((3, 4, 128 // s, 160 // s)).astype(np.float32) for s in (4, 8, 16, 32)
]
ROIS = rois(  # across and beyond the border, narrower than a cell; an image and levels without any
    [[3, 4, 20, 50], [-16, -3, 9, 9], [10, 20, 10.5, 20.5], [0, 0, 160, 128], [200, 150, 230, 190]],
    [],
    [[150, 120, 170, 140], [0, 0, 120, 119], [40, 40, 41, 90]],
)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_a_cpu_and_a_gpu_give_equal_results(ratio: int, aligned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = RoIAlign([4, 8, 16, 32], output_size=3, sampling_ratio=ratio, aligned=aligned)
    features = [float32(m) for m in PYRAMID]
    on_cpu = pool(features, ROIS).numpy()
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: False)
    np.testing.assert_allclose(on_cpu, pool(features, ROIS).numpy(), atol=2e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [0, 2])
def test_gradient_is_the_adjoint_of_the_pooling(ratio: int, aligned: bool) -> None:
    """Pooling is linear: a change d of the maps changes sum(given * pooled) by sum(gradient * d), for every d.

    The gradient of Paddle's operator, which is not used on a CPU, is another for RoIs narrower than a cell.
    """
    rng = np.random.default_rng(7)
    pool = RoIAlign([4, 8, 16, 32], output_size=3, sampling_ratio=ratio, aligned=aligned)
    given = rng.standard_normal((8, 4, 3, 3))
    features = [paddle.to_tensor(m, stop_gradient=False) for m in PYRAMID]
    (pool(features, ROIS) * float32(given)).sum().backward()
    for _ in range(5):
        change = [rng.standard_normal(m.shape).astype(np.float32) for m in PYRAMID]
        effect = (pool([float32(d) for d in change], ROIS).numpy() * given).sum()
        along = sum((f.grad.numpy() * d).sum() for f, d in zip(features, change, strict=True) if f.grad is not None)
        assert along == pytest.approx(effect, abs=1e-3)


def test_a_roi_without_extent_pools_to_zero(device: str, request: pytest.FixtureRequest) -> None:
    """Adaptive sampling has no sample in it."""
    if device == "gpu":
        request.applymarker(pytest.mark.xfail(strict=True, reason="Paddle's RoIAlign divides 0 by 0 samples"))
    pool = RoIAlign([4, 8, 16, 32], output_size=3)
    assert not pool([float32(m) for m in PYRAMID], rois([[10, 20, 10, 20], [5, 5, 5, 9]], [], [])).numpy().any()


def test_gradient_reaches_the_pooled_levels_only() -> None:
    features = [paddle.ones([1, 1, 64 // s, 64 // s]) for s in (4, 8, 16, 32)]
    for feature in features:
        feature.stop_gradient = False
    pooled = pyramid_roi_align(features, [4, 8, 16, 32], rois([[0, 0, 32, 32]]), int64([1]), 2, 2, True)
    (3 * pooled).sum().backward()
    sums = [0.0 if f.grad is None else f.grad.sum().item() for f in features]
    np.testing.assert_allclose(sums, [0, 12, 0, 0], atol=1e-5)  # 4 bins, each a mean with weights of sum 1
