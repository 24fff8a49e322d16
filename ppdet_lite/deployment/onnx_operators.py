"""ONNX replacements of operators that paddle2onnx 2.1 does not support or converts wrongly.

- NMS is not supported.
- RoIAlign pools all RoIs from the first image and always uses half-pixel alignment.
- Deformable convolution is limited to one offset group and requires a mask.
- Group norm ignores epsilon.
- expand_as requires a static size.
- scale and clip round float64 and integers to float32.

Replacements of several nodes are ONNX functions, written in ONNX's textual syntax. `onnx_export` inlines them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import FunctionProto, NodeProto, helper, numpy_helper, parser

OPSET = 19  # the first version with DeformConv
DOMAIN = "ppdet_lite"  # operator domain of the functions below; no exported file contains it
# Each group of boxes is a class of NonMaxSuppression, where boxes of different classes never suppress each other. Boxes
# are given in descending order of score; here the score of a box is the number of boxes from it to the end, and 0, the
# threshold, in other classes. NonMaxSuppression returns indices ordered by class; TopK sorts them in ascending order.
_NMS = """
Nms (boxes, groups, iou) => (kept) {
  count = Shape<start=0, end=1>(boxes)
  zero = Constant<value_ints=[0]>()
  one = Constant<value_ints=[1]>()
  minus_one = Constant<value_ints=[-1]>()
  corners = Cast<to=1>(boxes)
  all_corners = Unsqueeze(corners, zero)
  group = Cast<to=7>(groups)
  row = Reshape(group, minus_one)
  row_and_zero = Concat<axis=0>(row, zero)
  last_group = ReduceMax<keepdims=0>(row_and_zero)
  first = Constant<value_int=0>()
  step = Constant<value_int=1>()
  group_count = Add(last_group, step)
  classes = Range(first, group_count, step)
  column = Unsqueeze(classes, one)
  is_member = Equal(row, column)
  length = Squeeze(count)
  position = Range(first, length, step)
  boxes_to_end = Sub(length, position)
  score = Cast<to=1>(boxes_to_end)
  zero_score = Constant<value_float=0.0>()
  scores = Where(is_member, score, zero_score)
  all_scores = Unsqueeze(scores, zero)
  selected = NonMaxSuppression(all_corners, all_scores, count, iou, zero_score)
  index_column = Constant<value_int=2>()
  index = Gather<axis=1>(selected, index_column)
  kept_count = Shape<start=0, end=1>(index)
  kept, order = TopK<largest=0>(index, kept_count)
}
"""

_ROI_ALIGN = """
RoiAlignOfBatch <height, width, ratio, scale, mode> (x, boxes, counts) => (pooled) {
  first = Constant<value_int=0>()
  step = Constant<value_int=1>()
  one = Constant<value_ints=[1]>()
  long_counts = Cast<to=7>(counts)
  ends = CumSum(long_counts, first)
  count = Shape<start=0, end=1>(boxes)
  length = Squeeze(count)
  position = Range(first, length, step)
  column = Unsqueeze(position, one)
  image_ended = GreaterOrEqual(column, ends)
  ended_images = Cast<to=7>(image_ended)
  image = ReduceSum<keepdims=0>(ended_images, one)
  pooled = RoiAlign<output_height: int = @height, output_width: int = @width, sampling_ratio: int = @ratio,
    spatial_scale: float = @scale, coordinate_transformation_mode: string = @mode>(x, boxes, image)
}
"""

# Means are computed per channel, then over channels: over the whole group at once, as in InstanceNormalization, ONNX
# Runtime has an error of 5e-4 with 700 thousand values per group.
_GROUP_NORM = """
GroupNorm <groups, epsilon> (x, weight, bias) => (normalized) {
  by_group = Constant<value_ints: ints = @groups>()
  by_channel = Constant<value_ints=[0, 0, -1]>()
  last = Constant<value_ints=[2]>()
  axes = Constant<value_ints=[1, 2]>()
  epsilon_constant = Constant<value_float: float = @epsilon>()
  shape = Shape(x)
  channels = Reshape(x, by_channel)
  channel_shape = Shape(channels)
  channel_mean = ReduceMean(channels, last)
  means = Reshape(channel_mean, by_group)
  mean = ReduceMean(means, last)
  grouped = Reshape(x, by_group)
  centered = Sub(grouped, mean)
  square = Mul(centered, centered)
  squares = Reshape(square, channel_shape)
  channel_square = ReduceMean(squares, last)
  variances = Reshape(channel_square, by_group)
  variance = ReduceMean(variances, last)
  stabilized = Add(variance, epsilon_constant)
  deviation = Sqrt(stabilized)
  grouped_result = Div(centered, deviation)
  result = Reshape(grouped_result, shape)
  weights = Unsqueeze(weight, axes)
  biases = Unsqueeze(bias, axes)
  scaled = Mul(result, weights)
  normalized = Add(scaled, biases)
}
"""


def functions() -> list[FunctionProto]:
    """Return the ONNX functions that nodes of `replacement` call."""
    header = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>'
    return [parser.parse_function(header + text) for text in (_NMS, _ROI_ALIGN, _GROUP_NORM)]


def replacement(operator: str, attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    """Return the ONNX nodes that replace a Paddle operator, such as "pd_op.nms".

    inputs: the names of the operator's operands, "" for an optional one without value, with two exceptions. NMS: boxes
    [D, 4] in descending order of score and their groups [D, 1] (see `ops.nms.grouped_nms`). Scale and clip: the tensor
    only; the attribute `kind` contains its data type and `constants` the values of the other operands.
    """
    return _REPLACEMENTS[operator](attributes, inputs, output)


def _nms(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    iou = f"{output}.iou"
    threshold = helper.make_node("Constant", [], [iou], value_float=attributes["threshold"])
    return [threshold, helper.make_node("Nms", [*inputs, iou], [output], domain=DOMAIN)]


def _roi_align(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    return [
        helper.make_node(
            "RoiAlignOfBatch",
            inputs,
            [output],
            domain=DOMAIN,
            height=attributes["pooled_height"],
            width=attributes["pooled_width"],
            ratio=max(attributes["sampling_ratio"], 0),  # adaptive: -1 in Paddle, 0 in ONNX
            scale=attributes["spatial_scale"],
            mode="half_pixel" if attributes["aligned"] else "output_half_pixel",
        )
    ]


def _deform_conv(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    x, offset, weight, mask = inputs
    return [
        helper.make_node(
            "DeformConv",
            [x, weight, offset, "", mask] if mask else [x, weight, offset],
            [output],
            strides=attributes["strides"],
            pads=[*attributes["paddings"], *attributes["paddings"]],
            dilations=attributes["dilations"],
            group=attributes["groups"],
            offset_group=attributes["deformable_groups"],
        )
    ]


def _expand_as(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    shape = f"{output}.shape"
    return [helper.make_node("Shape", inputs[1:], [shape]), helper.make_node("Expand", [inputs[0], shape], [output])]


def _group_norm(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    shape = [0, attributes["groups"], -1]  # images, groups, all else
    return [helper.make_node("GroupNorm", inputs, [output], domain=DOMAIN, groups=shape, epsilon=attributes["epsilon"])]


def _scale(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    factor, bias, intermediate = f"{output}.factor", f"{output}.bias", f"{output}.intermediate"
    constants = [
        _constant(factor, attributes["constants"][0], attributes["kind"]),
        _constant(bias, attributes["bias"], attributes["kind"]),
    ]
    steps = [("Mul", factor), ("Add", bias)][:: 1 if attributes["bias_after_scale"] else -1]
    return [
        *constants,
        helper.make_node(steps[0][0], [*inputs, steps[0][1]], [intermediate]),
        helper.make_node(steps[1][0], [intermediate, steps[1][1]], [output]),
    ]


def _clip(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    names = [f"{output}.min", f"{output}.max"]
    limits = zip(names, attributes["constants"], strict=True)
    constants = [_constant(name, value, attributes["kind"]) for name, value in limits]
    return [*constants, helper.make_node("Clip", [*inputs, *names], [output])]


def _constant(name: str, value: float, kind: str) -> NodeProto:
    """Return a constant of a NumPy type. An integer is clipped to the range of its type: a limit may be infinite."""
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)
        value = int(min(max(value, limits.min), limits.max))
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(value, kind)))


_REPLACEMENTS = {
    "pd_op.nms": _nms,
    "pd_op.roi_align": _roi_align,
    "pd_op.deformable_conv": _deform_conv,
    "pd_op.expand_as": _expand_as,
    "pd_op.group_norm": _group_norm,
    "pd_op.scale": _scale,
    "pd_op.clip": _clip,
}
REPLACED = frozenset(_REPLACEMENTS)
