"""The operators of a detector that paddle2onnx refuses or gets wrong, made of ONNX's own.

Refused: NMS. Wrong, in version 2.1: RoIAlign reads the first image for every RoI and knows no other alignment than the
half pixel's; deformable convolution has one group of offsets only, and always a mask; group norm has no epsilon;
expand_as wants to know its size; scale and clip round to float32 what is float64 or an integer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import FunctionProto, NodeProto, helper, numpy_helper, parser

OPSET = 19  # the first with DeformConv
DOMAIN = "ppdet_lite"  # of the functions below, which are written out before a graph is kept
# No two groups share a class of NonMaxSuppression, where boxes of different classes never suppress each other. It keeps
# the best of a class, and what comes first is to be better here; indices come back class by class.
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
  row_or_zero = Concat<axis=0>(row, zero)
  last = ReduceMax<keepdims=0>(row_or_zero)
  first = Constant<value_int=0>()
  step = Constant<value_int=1>()
  group_count = Add(last, step)
  classes = Range(first, group_count, step)
  column = Unsqueeze(classes, one)
  member = Equal(row, column)
  length = Squeeze(count)
  position = Range(first, length, step)
  behind = Sub(length, position)
  rank = Cast<to=1>(behind)
  never = Constant<value_float=0.0>()
  scores = Where(member, rank, never)
  all_scores = Unsqueeze(scores, zero)
  found = NonMaxSuppression(all_corners, all_scores, count, iou, never)
  third = Constant<value_int=2>()
  index = Gather<axis=1>(found, third)
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
  passed = GreaterOrEqual(column, ends)
  images = Cast<to=7>(passed)
  image = ReduceSum<keepdims=0>(images, one)
  pooled = RoiAlign<output_height: int = @height, output_width: int = @width, sampling_ratio: int = @ratio,
    spatial_scale: float = @scale, coordinate_transformation_mode: string = @mode>(x, boxes, image)
}
"""

# Means of a channel first, then of the channels: in one go, as InstanceNormalization takes them, ONNX Runtime is 5e-4
# off where a group has 700 thousand values.
_GROUP_NORM = """
GroupNorm <groups, epsilon> (x, weight, bias) => (normalised) {
  by_group = Constant<value_ints: ints = @groups>()
  by_channel = Constant<value_ints=[0, 0, -1]>()
  last = Constant<value_ints=[2]>()
  axes = Constant<value_ints=[1, 2]>()
  least = Constant<value_float: float = @epsilon>()
  shape = Shape(x)
  channels = Reshape(x, by_channel)
  channel_shape = Shape(channels)
  channel_mean = ReduceMean(channels, last)
  means = Reshape(channel_mean, by_group)
  mean = ReduceMean(means, last)
  grouped = Reshape(x, by_group)
  centred = Sub(grouped, mean)
  square = Mul(centred, centred)
  squares = Reshape(square, channel_shape)
  channel_square = ReduceMean(squares, last)
  variances = Reshape(channel_square, by_group)
  variance = ReduceMean(variances, last)
  safe = Add(variance, least)
  deviation = Sqrt(safe)
  each = Div(centred, deviation)
  whole = Reshape(each, shape)
  weights = Unsqueeze(weight, axes)
  biases = Unsqueeze(bias, axes)
  scaled = Mul(whole, weights)
  normalised = Add(scaled, biases)
}
"""


def functions() -> list[FunctionProto]:
    """What the nodes of `replacement` call."""
    header = f'<domain: "{DOMAIN}", opset_import: ["": {OPSET}]>'
    return [parser.parse_function(header + text) for text in (_NMS, _ROI_ALIGN, _GROUP_NORM)]


def replacement(operator: str, attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    """Nodes in place of one of Paddle's operators, named as Paddle names it.

    inputs: of "pd_op.nms" boxes [D, 4], best first, and their groups [D, 1] (see `ops.nms.grouped_nms`); of scale and
    clip the tensor alone, whose type is the attribute `kind`, other operands being `constants`; otherwise the
    operator's own, "" for one that it does without.
    """
    return _REPLACEMENTS[operator](attributes, inputs, output)


def _nms(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    iou = f"{output}.iou"
    threshold = helper.make_node("Constant", [], [iou], value_float=attributes["threshold"])
    return [threshold, helper.make_node("Nms", [*inputs, iou], [output], domain=DOMAIN)]


def _roi_align(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    node = helper.make_node(
        "RoiAlignOfBatch",
        inputs,
        [output],
        domain=DOMAIN,
        height=attributes["pooled_height"],
        width=attributes["pooled_width"],
        ratio=max(attributes["sampling_ratio"], 0),  # "as many as cells" is -1 there, 0 here
        scale=attributes["spatial_scale"],
        mode="half_pixel" if attributes["aligned"] else "output_half_pixel",
    )
    return [node]


def _deform_conv(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    x, offset, weight, mask = inputs
    node = helper.make_node(
        "DeformConv",
        [x, weight, offset, "", mask] if mask else [x, weight, offset],
        [output],
        strides=attributes["strides"],
        pads=[*attributes["paddings"], *attributes["paddings"]],
        dilations=attributes["dilations"],
        group=attributes["groups"],
        offset_group=attributes["deformable_groups"],
    )
    return [node]


def _expand_as(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    shape = f"{output}.shape"
    return [
        helper.make_node("Shape", inputs[1:], [shape]),
        helper.make_node("Expand", [inputs[0], shape], [output]),
    ]


def _group_norm(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    shape = [0, attributes["groups"], -1]  # the images, the groups, the rest
    return [helper.make_node("GroupNorm", inputs, [output], domain=DOMAIN, groups=shape, epsilon=attributes["epsilon"])]


def _scale(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    factor, total, middle = f"{output}.factor", f"{output}.bias", f"{output}.middle"
    constants = [
        _constant(factor, attributes["constants"][0], attributes["kind"]),
        _constant(total, attributes["bias"], attributes["kind"]),
    ]
    steps = [("Mul", factor), ("Add", total)][:: 1 if attributes["bias_after_scale"] else -1]
    return [
        *constants,
        helper.make_node(steps[0][0], [*inputs, steps[0][1]], [middle]),
        helper.make_node(steps[1][0], [middle, steps[1][1]], [output]),
    ]


def _clip(attributes: Mapping[str, Any], inputs: Sequence[str], output: str) -> list[NodeProto]:
    names = [f"{output}.min", f"{output}.max"]
    limits = zip(names, attributes["constants"], strict=True)
    constants = [_constant(name, value, attributes["kind"]) for name, value in limits]
    return [*constants, helper.make_node("Clip", [*inputs, *names], [output])]


def _constant(name: str, value: float, kind: str) -> NodeProto:
    """A constant of a numpy type; in place of what an integer cannot hold, as a limit may be, its largest."""
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
