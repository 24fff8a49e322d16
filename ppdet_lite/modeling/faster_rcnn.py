"""Faster R-CNN: the parts in their order, for training and for detection."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from paddle import Tensor, nn

from ppdet_lite.core.registry import build, build_offered, register
from ppdet_lite.modeling.box_head import BoxPredictor
from ppdet_lite.modeling.components import Backbone, BoxHead, Neck, RoIPool
from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.modeling.rpn import RPN
from ppdet_lite.structures import Detections, Targets


class TrainingOutput(NamedTuple):
    """What a training forward returns: the sum of `losses` is minimised, `metrics` are only watched."""

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


@register
class FasterRCNN(nn.Layer):
    """Faster R-CNN with a feature pyramid (Ren et al. 2015; Lin et al. 2017)."""

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck,
        rpn: RPN,
        roi_pool: RoIPool,
        box_head: BoxHead,
        predictor: BoxPredictor,
        roi_sampler: RoISampler = RoISampler(),
        postprocess: Postprocess = Postprocess(),
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.rpn = backbone, neck, rpn
        self.roi_sampler, self.roi_pool = roi_sampler, roi_pool
        self.box_head, self.predictor, self.postprocess = box_head, predictor, postprocess

    @classmethod
    def from_config(cls, config: Mapping[str, Any], num_classes: int) -> "FasterRCNN":
        """Build the parts of a checked `model:` section, telling each what it needs to know of the others."""
        backbone = build(config["backbone"])
        neck = build(config["neck"], in_channels=backbone.out_channels, in_strides=backbone.out_strides)
        roi_pool = build_offered(config["roi_pool"], in_strides=neck.out_strides, in_channels=neck.out_channels)
        box_head = build(config["box_head"], in_channels=neck.out_channels, output_size=roi_pool.output_size)
        return cls(
            backbone,
            neck,
            build(config["rpn"], in_channels=neck.out_channels, in_strides=neck.out_strides),
            roi_pool,
            box_head,
            build(config["predictor"], in_features=box_head.out_features, num_classes=num_classes),
            build(config["roi_sampler"]),
            build(config["postprocess"]),
        )

    def forward(
        self, images: Tensor, image_sizes: Tensor, scales: Tensor, targets: Sequence[Targets] | None = None
    ) -> TrainingOutput | Detections:
        """Losses when there are targets, else detections.

        images [N, 3, H, W], H and W multiples of `neck.size_divisor`; image_sizes [N, 2] (h, w) before padding; scales
        [N, 2] (y, x) = resized / original.
        """
        features = self.neck(self.backbone(images))
        logits, deltas = self.rpn(features)
        anchors = self.rpn.make_anchors(features)
        proposals = self.rpn.propose(anchors, logits, deltas, image_sizes)
        if targets is None:
            output = self.predictor(self.box_head(self.roi_pool(features, proposals)))
            return self.postprocess(output, proposals, self.predictor.delta_weights, image_sizes, scales)
        sampled = self.roi_sampler(proposals, targets, self.predictor.num_classes)
        output = self.predictor(self.box_head(self.roi_pool(features, sampled.rois)))
        losses = {**self.rpn.losses(anchors, logits, deltas, targets), **self.predictor.losses(output, sampled)}
        return TrainingOutput(losses, self.predictor.metrics(output, sampled))
