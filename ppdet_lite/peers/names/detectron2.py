"""Weight names of detectron2: the pickles of its model zoo and the .pth files that it writes."""

import re

from ppdet_lite.peers.names.rules import STATISTICS, TRANSPOSED, Peer, Rule, Shapes


def detectron2(shapes: Shapes) -> Peer:
    """Return the naming for a model with weights of these names and shapes."""
    backbone = "backbone.bottom_up" if "neck.lateral.0.conv.weight" in shapes else "backbone"
    return Peer(
        "detectron2",
        [
            Rule(r"backbone\.stem\.(.+)", lambda m: f"{backbone}.stem.conv1.{_conv(m[1])}"),
            Rule(r"backbone\.(res\d\.\d+\.\w+)\.(.+)", lambda m: f"{backbone}.{m[1]}.{_conv(m[2])}"),
            Rule(r"box_head\.(res5\.\d+\.\w+)\.(.+)", lambda m: f"roi_heads.{m[1]}.{_conv(m[2])}"),
            Rule(r"neck\.(lateral|output)\.(\d)\.(.+)", _in_pyramid),
            Rule(r"rpn\.conv\.(.+)", r"proposal_generator.rpn_head.conv.\1"),
            Rule(r"rpn\.objectness\.(.+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
            Rule(r"rpn\.regress\.(.+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
            Rule(r"box_head\.(fc[12])\.(.+)", r"roi_heads.box_head.\1.\2", TRANSPOSED),
            Rule(r"box_head\.convs\.(\d)\.(.+)", lambda m: f"roi_heads.box_head.conv{int(m[1]) + 1}.{_conv(m[2])}"),
            Rule(r"box_head\.fc\.(.+)", r"roi_heads.box_head.fc1.\1", TRANSPOSED),
            Rule(r"predictor\.classify\.(.+)", r"roi_heads.box_predictor.cls_score.\1", TRANSPOSED),
            Rule(r"predictor\.regress\.(.+)", r"roi_heads.box_predictor.bbox_pred.\1", TRANSPOSED),
        ],
        classifier="roi_heads.box_predictor.cls_score.bias",
        ignored=[
            r"pixel_(mean|std)",
            r"proposal_generator\.anchor_generator\.cell_anchors\.\d",
            r".*num_batches_tracked",
        ],
        required_names=["roi_heads.box_predictor.cls_score.bias", "proposal_generator.rpn_head.conv.weight"],
    )


def _conv(suffix: str) -> str:
    """Convert "conv.weight" to "weight" and "norm._mean" to "norm.running_mean"."""
    kind, _, name = suffix.partition(".")
    return name if kind == "conv" else f"norm.{STATISTICS[name]}"


def _in_pyramid(match: re.Match[str]) -> str:
    return f"backbone.fpn_{match[1]}{int(match[2]) + 2}.{_conv(match[3])}"
