"""mmdetection's layers that differ, computed step by step in NumPy, with weights under its names.

mmcv's operators have no CPU kernels, so there is nothing to run beside; the walk follows their sources' arithmetic.
"""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import paddle

from ppdet_lite.assembly.setup import build_model, peer_config
from ppdet_lite.modeling.deform import Deformable, DeformConv2D
from ppdet_lite.modeling.roi_pool import DeformRoIPool
from ppdet_lite.ops.boxes import decode_boxes
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


def cascade_state(classes: int, width: int, inputs: int) -> dict[str, np.ndarray]:
    """Weights of the box heads of mmdetection's Cascade R-CNN, under its names."""
    shapes = {}
    for stage in range(3):
        head = f"roi_head.bbox_head.{stage}"
        sizes = {"shared_fcs.0": (width, inputs), "shared_fcs.1": (width, width)}
        for name, shape in (sizes | {"fc_cls": (classes + 1, width), "fc_reg": (4, width)}).items():
            shapes |= {f"{head}.{name}.weight": shape, f"{head}.{name}.bias": shape[:1]}
    return random_state(shapes, 0.2)


def test_the_stages_of_a_cascade() -> None:
    """CascadeRoIHead._refine_roi: RoIs of a stage are the boxes of the one before, and logits are averaged.

    DeltaXYWHBBoxCoder multiplies by standard deviations: 0.033 and 0.067 in the third stage.
    """
    size = (96, 128)
    config = peer_config("cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco", "mmdet", ["model.box_head.width=16"])
    model = build_model(config, ["a", "b", "c"], for_training=False)
    model.eval()
    theirs = cascade_state(classes=3, width=16, inputs=256 * 49)
    wanted = {n: tuple(v.shape) for n, v in model.state_dict().items() if "predictor." in n or "box_head." in n}
    report = mmdet(wanted).to_ours(wanted, {name: array.astype(np.float32) for name, array in theirs.items()})
    assert report.is_complete and len(report.matched) == 24, report.summary()
    model.set_state_dict({**model.state_dict(), **report.matched})
    rng = np.random.default_rng(3)
    features = [tiny.float32(rng.normal(size=(1, 256, size[0] // s, size[1] // s)) * 0.05) for s in STRIDES]
    rois = np.array([[10, 12, 60, 70], [3, 4, 120, 90], [80, 30, 125, 94]], np.float64)
    with paddle.no_grad():
        output, last = model._predict(features, tiny.rois(rois.tolist()), tiny.float32([size]))
    scores = []
    for stage, std in enumerate(((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))):
        head = f"roi_head.bbox_head.{stage}"
        pooled = model.roi_pool(features, tiny.rois(rois.tolist())).numpy().reshape(len(rois), -1)
        hidden = pooled
        for layer in range(2):
            hidden = np.array([np.maximum(dense(theirs, f"{head}.shared_fcs.{layer}", row), 0) for row in hidden])
        scores.append(np.array([dense(theirs, f"{head}.fc_cls", row) for row in hidden]))
        deltas, before = np.array([dense(theirs, f"{head}.fc_reg", row) for row in hidden]) * std, rois
        extent = rois[:, 2:] - rois[:, :2]
        center = (rois[:, :2] + rois[:, 2:]) / 2 + deltas[:, :2] * extent
        extent = extent * np.exp(deltas[:, 2:])
        rois = np.concatenate([center - extent / 2, center + extent / 2], axis=1).clip(0, [size[1], size[0]] * 2)
    np.testing.assert_allclose(last.boxes.numpy(), before, atol=1e-2)
    np.testing.assert_allclose(output.logits.numpy(), np.mean(scores, axis=0), rtol=1e-4, atol=1e-4)
    final = decode_boxes(last.boxes, output.deltas, model.predictor.delta_weights).numpy()
    np.testing.assert_allclose(final.clip(0, [size[1], size[0]] * 2), rois, atol=1e-2)
    assert np.abs(rois - before).max() > 0.5 and np.ptp(np.mean(scores, axis=0)) > 0.3
