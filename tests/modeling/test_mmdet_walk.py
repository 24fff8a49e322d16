"""mmdetection's layers that differ, computed step by step in NumPy, with weights under its names.

mmcv's operators have no CPU kernels, so there is nothing to run beside; the walk follows their sources' arithmetic.
"""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import paddle

from ppdet_lite.modeling.deform import Deformable, DeformConv2D
from ppdet_lite.modeling.roi_pool import DeformRoIPool
from ppdet_lite.peers.names.mmdet import mmdet
from tests import tiny
from tests.ops.test_deform_roi_pool import aligned_loop

STRIDES, CHANNELS, SIZE, HIDDEN = [4, 8, 16, 32], 2, 3, 5


def random_state(shapes: Mapping[str, tuple[int, ...]], scale: float) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, scale, shape) for name, shape in shapes.items()}


def taken(layer: paddle.nn.Layer, prefix: str, theirs: Mapping[str, np.ndarray]) -> None:
    """Load mmdetection's weights into our layer, by the rules of conversion."""
    wanted = {f"{prefix}{name}": tuple(value.shape) for name, value in layer.state_dict().items()}
    report = mmdet(wanted).to_ours(wanted, {name: array.astype(np.float32) for name, array in theirs.items()})
    assert report.is_complete, report.summary()
    layer.set_state_dict({name.removeprefix(prefix): array for name, array in report.matched.items()})


def sample(plane: np.ndarray, y: float, x: float) -> float:
    """Interpolate a zero-padded plane bilinearly."""
    top, left = math.floor(y), math.floor(x)
    value = 0.0
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < plane.shape[0] and 0 <= column < plane.shape[1]:
            value += plane[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return value


def test_modulated_convolution_with_four_groups() -> None:
    """ModulatedDeformConv2dPack: a convolution computes o1, o2 and the mask; groups outermost, y before x."""
    groups, channels, height, width = 4, 8, 5, 6
    layer = DeformConv2D(channels, 3, 3, 1, 1, Deformable(version=2, groups=groups))
    name = "backbone.layer2.0.conv2"
    theirs = random_state(
        {
            f"{name}.weight": (3, channels, 3, 3),
            f"{name}.conv_offset.weight": (27 * groups, channels, 3, 3),
            f"{name}.conv_offset.bias": (27 * groups,),
        },
        0.2,
    )
    taken(layer, "backbone.res3.0.conv2.conv.", theirs)
    x = np.random.default_rng(1).normal(size=(channels, height, width))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    expected = np.zeros((3, height, width))
    for i, j in np.ndindex(height, width):
        window = padded[:, i : i + 3, j : j + 3]
        said = np.einsum("ocij,cij->o", theirs[f"{name}.conv_offset.weight"], window)
        first, second, mask = np.split(said + theirs[f"{name}.conv_offset.bias"], 3)
        offset, mask = np.concatenate([first, second]), 1 / (1 + np.exp(-mask))
        for c, k in np.ndindex(channels, 9):
            group = c // (channels // groups)
            dy, dx = offset[group * 18 + 2 * k], offset[group * 18 + 2 * k + 1]
            value = sample(x[c], i - 1 + k // 3 + dy, j - 1 + k % 3 + dx) * mask[group * 9 + k]
            expected[:, i, j] += theirs[f"{name}.weight"][:, c, k // 3, k % 3] * value
    np.testing.assert_allclose(layer(tiny.float32(x[None])).numpy()[0], expected, rtol=1e-4, atol=1e-5)


def dense(theirs: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return theirs[f"{name}.weight"] @ x + theirs[f"{name}.bias"]


def test_modulated_pooling_has_a_branch_for_each_level_and_one_for_the_mask() -> None:
    """ModulatedDeformRoIPoolPack in SingleRoIExtractor: four packs, each with its own offset_fc and mask_fc."""
    paddle.seed(0)
    layer = DeformRoIPool(STRIDES, CHANNELS, True, "mmcv", hidden=HIDDEN, output_size=SIZE, per_level=True)
    inputs, bins = CHANNELS * SIZE**2, SIZE**2
    shapes = {}
    for level in range(4):
        base = f"roi_head.bbox_roi_extractor.roi_layers.{level}"
        widths = {"offset_fc": (inputs, HIDDEN, HIDDEN, 2 * bins), "mask_fc": (inputs, HIDDEN, bins)}
        for branch, sizes in widths.items():
            for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
                shapes[f"{base}.{branch}.{2 * i}.weight"] = (fan_out, fan_in)
                shapes[f"{base}.{branch}.{2 * i}.bias"] = (fan_out,)
    theirs = random_state(shapes, 0.5)
    taken(layer, "roi_pool.", theirs)
    rng = np.random.default_rng(2)
    features = [rng.normal(size=(1, CHANNELS, 320 // s, 320 // s)) for s in STRIDES]
    boxes = np.array([[60, 50, 110, 92], [70, 40, 200, 160], [40, 60, 280, 290], [5, 5, 300, 310]], np.float64)
    rows = []
    for box in boxes:
        side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        level = min(max(math.floor(math.log2(side / 56 + 1e-6)), 0), 3)
        base, pool = f"roi_head.bbox_roi_extractor.roi_layers.{level}", (features[level], box[None], [0])
        settings = ((SIZE, SIZE), 1 / STRIDES[level], 0)
        plain = aligned_loop(*pool, *settings).ravel()
        hidden = np.maximum(dense(theirs, f"{base}.offset_fc.0", plain), 0)
        hidden = np.maximum(dense(theirs, f"{base}.offset_fc.2", hidden), 0)
        offset = dense(theirs, f"{base}.offset_fc.4", hidden).reshape(1, 2, SIZE, SIZE)
        logits = dense(theirs, f"{base}.mask_fc.2", np.maximum(dense(theirs, f"{base}.mask_fc.0", plain), 0))
        mask = (1 / (1 + np.exp(-logits))).reshape(1, 1, SIZE, SIZE)
        rows.append(aligned_loop(*pool, *settings, offset=offset, mask=mask))
    found = layer([tiny.float32(feature) for feature in features], tiny.rois(boxes.tolist()))
    np.testing.assert_allclose(found.numpy(), np.concatenate(rows), rtol=1e-3, atol=1e-4)
    assert len({layer.level(tiny.boxes(*boxes)).tolist()[i] for i in range(4)}) == 3


def test_per_level_branches_with_equal_weights() -> None:
    """`per_level` with equal weights equals a single branch; gradients of levels without RoIs are 0."""
    paddle.seed(0)
    shared = DeformRoIPool(STRIDES, CHANNELS, False, "paper", output_size=SIZE)
    shared.offset[0].weight.set_value(paddle.randn(shared.offset[0].weight.shape))
    apart = DeformRoIPool(STRIDES, CHANNELS, False, "paper", output_size=SIZE, per_level=True)
    for branch in apart.branches:
        branch.offset.set_state_dict(shared.offset.state_dict())
    features = [paddle.randn([1, CHANNELS, 320 // s, 320 // s]) for s in STRIDES]
    rois = tiny.rois([[60, 50, 110, 92], [70, 40, 200, 160]])  # of the levels 0 and 1
    np.testing.assert_allclose(apart(features, rois).numpy(), shared(features, rois).numpy(), rtol=1e-5, atol=1e-6)
    apart(features, rois).square().sum().backward()
    moved = [branch.offset[0].weight.grad.abs().sum().item() > 0 for branch in apart.branches]
    assert moved == [True, True, False, False]
