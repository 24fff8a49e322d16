"""Weight names of torchvision's FasterRCNN: fasterrcnn_resnet50_fpn, its version 2, and others."""

import numpy as np

from ppdet_lite.peers.dataset_classes import COCO_IDS
from ppdet_lite.peers.names.rules import STATISTICS, TRANSPOSED, Layout, Peer, Rule, Shapes, in_torch_resnet

COCO_OUTPUTS = 91  # background and the category ids 1..90, ten of which are unused


def _class_outputs(outputs: int) -> list[int]:
    """Return the indices of torchvision's outputs that are classes: neither background nor unused."""
    return list(COCO_IDS) if outputs == COCO_OUTPUTS else list(range(1, outputs))


def _background_last(array: np.ndarray) -> np.ndarray:
    """Convert a classifier's weight [K + 1, D] or bias: move the background from 0 to the end."""
    return np.ascontiguousarray(array[[*_class_outputs(len(array)), 0]].T)


def _without_background(array: np.ndarray) -> np.ndarray:
    """Convert a box regression's weight [4 (K + 1), D] or bias: remove the background's four rows."""
    rows = array.reshape(-1, 4, *array.shape[1:])
    return np.ascontiguousarray(rows[_class_outputs(len(rows))].reshape(-1, *array.shape[1:]).T)


CLASSES, BOXES = Layout(_background_last, None), Layout(_without_background, None)


def torchvision(shapes: Shapes) -> Peer:
    """Return the naming for a model with weights of these names and shapes.

    Class 0 is the background in torchvision. Of COCO's 91 outputs, those without a class are removed; the softmax
    distributes their probability among the others.
    """
    return Peer(
        "torchvision",
        [
            *in_torch_resnet("backbone.body."),
            *_convs(r"neck\.lateral\.(\d)", r"backbone.fpn.inner_blocks.{}"),
            *_convs(r"neck\.output\.(\d)", r"backbone.fpn.layer_blocks.{}"),
            Rule(r"rpn\.conv\.(.+)", r"rpn.head.conv.0.0.\1"),
            Rule(r"rpn\.more_convs\.(\d)\.(.+)", lambda m: f"rpn.head.conv.{int(m[1]) + 1}.0.{m[2]}"),
            Rule(r"rpn\.objectness\.(.+)", r"rpn.head.cls_logits.\1"),
            Rule(r"rpn\.regress\.(.+)", r"rpn.head.bbox_pred.\1"),
            Rule(r"box_head\.fc1\.(.+)", r"roi_heads.box_head.fc6.\1", TRANSPOSED),
            Rule(r"box_head\.fc2\.(.+)", r"roi_heads.box_head.fc7.\1", TRANSPOSED),
            *_convs(r"box_head\.convs\.(\d)", r"roi_heads.box_head.{}"),
            Rule(r"box_head\.fc\.(.+)", rf"roi_heads.box_head.{_conv_count(shapes) + 1}.\1", TRANSPOSED),
            Rule(r"predictor\.classify\.(.+)", r"roi_heads.box_predictor.cls_score.\1", CLASSES),
            Rule(r"predictor\.regress\.(.+)", r"roi_heads.box_predictor.bbox_pred.\1", BOXES),
        ],
        classifier="roi_heads.box_predictor.cls_score.bias",
        ignored=[r".*num_batches_tracked"],
        required_names=["roi_heads.box_predictor.cls_score.bias", "rpn.head.cls_logits.weight"],
        legacy_names=[
            (r"^(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)$", r"\1.0.\2"),
            (r"^rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
        ],
        class_count=lambda outputs: len(_class_outputs(outputs)),
    )


def _convs(ours: str, theirs: str) -> list[Rule]:
    """Return the rules of a convolution and its norm, items 0 and 1 of an nn.Sequential."""
    return [
        Rule(rf"{ours}\.conv\.(.+)", lambda m: f"{theirs.format(m[1])}.0.{m[2]}"),
        Rule(rf"{ours}\.norm\.(.+)", lambda m: f"{theirs.format(m[1])}.1.{STATISTICS[m[2]]}"),
    ]


def _conv_count(shapes: Shapes) -> int:
    return sum(name.startswith("box_head.convs.") and name.endswith("conv.weight") for name in shapes)
