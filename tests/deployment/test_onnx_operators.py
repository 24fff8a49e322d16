"""ONNX replacements compared with Paddle's operators."""

import numpy as np
import onnx
import onnx.inliner
import onnxruntime
import paddle
import paddle.nn.functional as F
import pytest
from onnx import TensorProto, helper
from paddle.vision.ops import roi_align

from ppdet_lite.deployment.onnx_operators import DOMAIN, OPSET, functions, replacement
from ppdet_lite.ops.deform_conv import deform_conv2d
from ppdet_lite.ops.nms import grouped_nms
from tests import tiny

TYPES = {np.dtype("float32"): TensorProto.FLOAT, np.dtype("float64"): TensorProto.DOUBLE}
TYPES |= {np.dtype("int32"): TensorProto.INT32, np.dtype("int64"): TensorProto.INT64}


def run(operator: str, attributes: dict, *values: np.ndarray | None) -> np.ndarray:
    """Run an operator's replacement with ONNX Runtime; None is a missing optional operand."""
    feed = {f"in{i}": value for i, value in enumerate(values) if value is not None}
    names = [f"in{i}" if value is not None else "" for i, value in enumerate(values)]
    inputs = [
        helper.make_tensor_value_info(name, TYPES[value.dtype], [None] * value.ndim) for name, value in feed.items()
    ]
    kind = TYPES[np.dtype(attributes.get("kind", "int64" if operator == "pd_op.nms" else "float32"))]
    graph = helper.make_graph(
        replacement(operator, attributes, names, "out"),
        "part",
        inputs,
        [helper.make_tensor_value_info("out", kind, None)],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=functions(), ir_version=9)
    model = onnx.inliner.inline_local_functions(model)
    assert {node.domain for node in model.graph.node} == {""}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["out"], feed)[0]


@pytest.mark.parametrize("groups", [1, 5, 170])
@pytest.mark.parametrize("iou", [0.3, 0.7])
def test_nms_keeps_the_same_boxes_as_paddle(groups: int, iou: float) -> None:
    rng = np.random.default_rng(groups)
    boxes = tiny.random_boxes(rng, 300, 800)
    scores, group = np.sort(rng.random(300).astype(np.float32))[::-1].copy(), rng.integers(0, groups, 300)
    kept = grouped_nms(*map(paddle.to_tensor, (boxes, scores, group)), iou).numpy()
    assert 0 < len(kept) < 300 or groups == 170
    found = run("pd_op.nms", {"threshold": iou}, boxes.astype(np.float64), group.astype(np.float64)[:, None])
    np.testing.assert_array_equal(found, kept)


def test_nms_of_a_far_group_is_not_rounded() -> None:
    """Shifted in float32, these would be at 2^24 pixels and more, where the resolution is 2."""
    boxes = np.array([[0, 0, 10, 10], [0.5, 0, 10.5, 10], [0, 0, 10, 10]], np.float64)
    groups = np.array([[600_000], [600_000], [0]], np.float64)
    assert run("pd_op.nms", {"threshold": 0.9}, boxes, groups).tolist() == [0, 2]
    assert run("pd_op.nms", {"threshold": 0.91}, boxes, groups).tolist() == [0, 1, 2]


def test_nms_of_nothing() -> None:
    assert run("pd_op.nms", {"threshold": 0.5}, np.zeros((0, 4)), np.zeros((0, 1))).shape == (0,)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [-1, 2])
@pytest.mark.parametrize("counts", [[7], [3, 0, 4], [0, 0]])
def test_roi_align_reads_each_roi_from_its_image(aligned: bool, ratio: int, counts: list[int]) -> None:
    rng = np.random.default_rng(0)
    x, boxes = rng.standard_normal((len(counts), 4, 20, 30)).astype(np.float32), tiny.random_boxes(rng, sum(counts), 80)
    counts = np.array(counts, np.int32)
    attributes = {"pooled_height": 3, "pooled_width": 2, "sampling_ratio": ratio, "spatial_scale": 0.25}
    found = run("pd_op.roi_align", attributes | {"aligned": aligned}, x, boxes, counts)
    assert found.shape == (counts.sum(), 4, 3, 2)
    if counts.sum():
        tensors = map(paddle.to_tensor, (x, boxes, counts))
        np.testing.assert_allclose(found, roi_align(*tensors, (3, 2), 0.25, ratio, aligned).numpy(), atol=1e-5)


@pytest.mark.parametrize(("deformable_groups", "groups"), [(1, 1), (2, 1), (4, 2), (1, 4)])
@pytest.mark.parametrize("masked", [True, False])
def test_deformable_convolution_of_both_versions(deformable_groups: int, groups: int, masked: bool) -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 8, 9, 12), (2, 18 * deformable_groups, 5, 6), (8, 8 // groups, 3, 3)]
    x, offset, weight = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    mask = rng.random((2, 9 * deformable_groups, 5, 6)).astype(np.float32) if masked else None
    attributes = {"strides": [2, 2], "paddings": [2, 2], "dilations": [2, 2]}
    attributes |= {"groups": groups, "deformable_groups": deformable_groups}
    found = run("pd_op.deformable_conv", attributes, x, offset, weight, mask)
    tensors = [None if value is None else paddle.to_tensor(value) for value in (x, offset, weight, mask)]
    expected = deform_conv2d(*tensors, None, 2, 2, 2, deformable_groups, groups)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


def test_expand_as_uses_the_runtime_size() -> None:
    values = np.arange(3, dtype=np.float32).reshape(1, 3)
    found = run("pd_op.expand_as", {}, values, np.zeros((2, 3), np.float32))
    np.testing.assert_array_equal(found, np.broadcast_to(values, (2, 3)))


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_group_norm_of_maps_that_have_one_value(groups: int) -> None:
    """Without epsilon the result would be 0 / 0."""
    rng = np.random.default_rng(0)
    for height, width in ((5, 7), (1, 1)):
        x, weight, bias = rng.normal(2, 3, (2, 8, height, width)), rng.normal(size=8), rng.normal(size=8)
        x, weight, bias = (value.astype(np.float32) for value in (x, weight, bias))
        expected = F.group_norm(paddle.to_tensor(x), groups, 1e-3, *map(paddle.to_tensor, (weight, bias)))
        found = run("pd_op.group_norm", {"groups": groups, "epsilon": 1e-3}, x, weight, bias)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_group_norm_of_a_large_map_is_exact() -> None:
    """ONNX Runtime's InstanceNormalization is not."""
    x = np.random.default_rng(0).normal(1, 2, (1, 64, 80, 128)).clip(0).astype(np.float32)
    ones = np.ones(64, np.float32)
    found = run("pd_op.group_norm", {"groups": 1, "epsilon": 1e-5}, x, ones, 0 * ones)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    np.testing.assert_allclose(found, exact, atol=1e-5)


def test_scale_and_clip_do_not_round() -> None:
    """paddle2onnx computes both in float32."""
    places, third = np.array([2**30 + 1, -5]), np.array([1 / 3, 1e9 + 0.25])
    scaled = {"bias": 1.0, "bias_after_scale": True, "constants": [3.0]}
    assert run("pd_op.scale", scaled | {"kind": "int64"}, places).tolist() == [3 * (2**30 + 1) + 1, -14]
    assert run("pd_op.scale", scaled | {"kind": "float64"}, third).tolist() == [2.0, 3e9 + 1.75]
    first = scaled | {"bias_after_scale": False}
    assert run("pd_op.scale", first | {"kind": "int32"}, places.astype(np.int32) // 4).tolist() == [3 * (2**28 + 1), -3]
    limits = {"constants": [0.0, 3.4e38]}
    assert run("pd_op.clip", limits | {"kind": "float64"}, third - 1e9).tolist() == [0.0, 0.25]
    assert run("pd_op.clip", limits | {"kind": "int64"}, places).tolist() == [2**30 + 1, 0]
