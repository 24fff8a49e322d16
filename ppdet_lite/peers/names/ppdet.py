"""Weight names of Faster and Cascade R-CNN in PaddleDetection 2.x, and of its pretrained ResNets."""

import re
from collections.abc import Mapping

from ppdet_lite.peers.names.rules import Peer, Rule, count_earlier_stages

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MANY_BLOCKS = 10  # blocks of a longer stage 4 are named a, b1, b2, ... instead of a, b, c, ...


def ppdet(shapes: Mapping[str, tuple[int, ...]]) -> Peer:
    """Return the naming for a model with weights of these names and shapes."""
    return Peer(
        "PaddleDetection",
        [
            Rule(r"(backbone|box_head)\.(res\d)\.(\d+)\.(.+)", lambda match: _in_block(match, shapes)),
            Rule(r"backbone\.stem\.conv(\d)\.(conv|norm)\.(.+)", r"backbone.conv1.conv1_\1.\2.\3"),
            Rule(r"backbone\.stem\.(conv|norm)\.(.+)", rf"backbone.conv1.{_stem(shapes)}.\1.\2"),
            Rule(r"neck\.(lateral|output)\.(\d)\.(.+)", lambda match: _in_pyramid(match, shapes)),
            Rule(r"rpn\.conv\.(.+)", r"rpn_head.rpn_feat.rpn_conv.\1"),
            Rule(r"rpn\.objectness\.(.+)", r"rpn_head.rpn_rois_score.\1"),
            Rule(r"rpn\.regress\.(.+)", r"rpn_head.rpn_rois_delta.\1"),
            Rule(r"box_head\.fc1?\.(.+)", r"bbox_head.head{.N}.fc6.\1"),
            Rule(r"box_head\.fc2\.(.+)", r"bbox_head.head{.N}.fc7.\1"),
            Rule(r"box_head\.convs\.(\d)\.(.+)", r"bbox_head.head{.N}.{stageN_}bbox_head_conv\1.\2"),
            Rule(r"predictor\.classify\.(.+)", r"bbox_head.bbox_score{_stageN}.\1"),
            Rule(r"predictor\.regress\.(.+)", r"bbox_head.bbox_delta{_stageN}.\1"),
        ],
        classifier="bbox_head.bbox_score{_stageN}.bias",
        required_names=["bbox_head.bbox_score{_stageN}.weight", "rpn_head.rpn_feat.rpn_conv.weight"],
        earlier_stages=count_earlier_stages(shapes),
    )


def _in_block(match: re.Match[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Convert the name of a weight in a residual block: res4.2.conv2.conv.weight is res4.res4c.branch2b.conv.weight."""
    part, stage, number, suffix = match[1], match[2], int(match[3]), match[4]
    has_many_blocks = f"{part}.{stage}.{MANY_BLOCKS}.conv1.conv.weight" in shapes and stage == "res4"
    letter = (f"b{number}" if number else "a") if has_many_blocks else LETTERS[number]
    suffix = re.sub(r"^conv(\d)\.", lambda conv: f"branch2{LETTERS[int(conv[1]) - 1]}.", suffix)
    suffix = suffix.replace(".conv.offset.", ".conv_offset.")
    is_pooled = part == "backbone" and f"{part}.stem.conv1.conv.weight" in shapes and stage != "res2"  # vd
    suffix = re.sub(r"^shortcut\.", "short.conv." if is_pooled else "short.", suffix)
    owner = "backbone" if part == "backbone" else "bbox_head.head"
    return f"{owner}.{stage}.{stage}{letter}.{suffix}"


def _stem(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return the name of a stem's single convolution. It differs for a ResNeXt, which has grouped 3x3 convolutions."""
    outputs, inputs = shapes.get("backbone.res2.0.conv2.conv.weight", (1, 1))[:2]
    return "conv1" if outputs == inputs else "res_conv1"


def _in_pyramid(match: re.Match[str], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Convert the name of an FPN weight. Without a norm, the convolution itself has the name of the level."""
    kind, level, suffix = match[1], int(match[2]) + 2, match[3]
    coarsest = f"neck.lateral.{level - 1}.conv.weight" not in shapes
    inner = f"fpn_inner_res{level}_sum" + ("" if coarsest else "_lateral")
    name = inner if kind == "lateral" else f"fpn_res{level}_sum"
    has_norm = f"neck.{kind}.{match[2]}.norm.weight" in shapes
    return f"neck.{name}.{suffix if has_norm else suffix.removeprefix('conv.')}"
