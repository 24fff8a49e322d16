"""Weight names of Faster and Cascade R-CNN in mmdetection 2.x and 3.x."""

from ppdet_lite.peers.names.rules import (
    STATISTICS,
    TRANSPOSED,
    Peer,
    Rule,
    Shapes,
    count_earlier_stages,
    in_torch_resnet,
)


def mmdet(shapes: Shapes) -> Peer:
    """Return the naming for a model with weights of these names and shapes."""
    has_statistics = "backbone.stem.norm._mean" in shapes or not shapes
    return Peer(
        "mmdetection",
        [
            *in_torch_resnet("backbone.", "bn" if has_statistics else "gn"),
            *_convs(r"neck\.lateral\.(\d)", "neck.lateral_convs.{}", shapes),
            *_convs(r"neck\.output\.(\d)", "neck.fpn_convs.{}", shapes),
            Rule(r"rpn\.conv\.(.+)", r"rpn_head.rpn_conv.\1"),
            Rule(r"rpn\.objectness\.(.+)", r"rpn_head.rpn_cls.\1"),
            Rule(r"rpn\.regress\.(.+)", r"rpn_head.rpn_reg.\1"),
            *_convs(r"box_head\.convs\.(\d)", "roi_head.bbox_head{{.N}}.shared_convs.{}", shapes),
            Rule(r"box_head\.fc1?\.(.+)", r"roi_head.bbox_head{.N}.shared_fcs.0.\1", TRANSPOSED),
            Rule(r"box_head\.fc2\.(.+)", r"roi_head.bbox_head{.N}.shared_fcs.1.\1", TRANSPOSED),
            Rule(
                r"roi_pool\.branches\.(\d)\.(offset|mask)\.(.+)",
                r"roi_head.bbox_roi_extractor{.N}.roi_layers.\1.\2_fc.\3",
                TRANSPOSED,
            ),
            Rule(r"predictor\.classify\.(.+)", r"roi_head.bbox_head{.N}.fc_cls.\1", TRANSPOSED),
            Rule(r"predictor\.regress\.(.+)", r"roi_head.bbox_head{.N}.fc_reg.\1", TRANSPOSED),
        ],
        classifier="roi_head.bbox_head{.N}.fc_cls.bias",
        ignored=[r".*num_batches_tracked"],
        required_names=["roi_head.bbox_head{.N}.fc_cls.bias", "rpn_head.rpn_cls.weight"],
        legacy_names=[(r"\.conv2_offset\.", ".conv2.conv_offset.")],
        earlier_stages=count_earlier_stages(shapes),
    )


def _convs(ours: str, theirs: str, shapes: Shapes) -> list[Rule]:
    """Return the rules of a convolution and its norm, which is named "bn" or "gn"."""
    kind = "bn" if any(name.startswith("neck.") and name.endswith("_mean") for name in shapes) else "gn"
    return [
        Rule(rf"{ours}\.conv\.(.+)", lambda m: f"{theirs.format(m[1])}.conv.{m[2]}"),
        Rule(rf"{ours}\.norm\.(.+)", lambda m: f"{theirs.format(m[1])}.{kind}.{STATISTICS[m[2]]}"),
    ]
