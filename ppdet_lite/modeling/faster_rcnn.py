"""Faster R-CNN: the parts in their order, for training and for detection."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn

from ppdet_lite.config.registry import build, register
from ppdet_lite.core.errors import Misfit
from ppdet_lite.modeling.box_head import BoxPredictor
from ppdet_lite.modeling.components import Backbone, BoxHead, Neck, RoIPool
from ppdet_lite.modeling.mimic import Mimicry, RCNNTeacher, network_sources
from ppdet_lite.modeling.neck import NoNeck
from ppdet_lite.modeling.norm import kept_statistics
from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.modeling.rpn import RPN
from ppdet_lite.ops.checks import full_precision
from ppdet_lite.structures import Originals, PackedDetections, Patches, Rois, SampledRois, Targets


class TrainingOutput(NamedTuple):
    """What a training forward returns: the sum of `losses` is minimised, the rest is only watched."""

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    patches: Patches | None = None  # what the R-CNN teacher saw, if there is one and it saw anything


@register
class FasterRCNN(nn.Layer):
    """Faster R-CNN (Ren et al. 2015), with a feature pyramid (Lin et al. 2017) or without.

    Args:
        neck: null for none: RPN and RoIs read the backbone's one map.
        mimic: the R-CNN whose features are mimicked in training; null for none. It is no part of detection.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck | None,
        rpn: RPN,
        roi_pool: RoIPool,
        box_head: BoxHead,
        predictor: BoxPredictor,
        roi_sampler: RoISampler = RoISampler(),
        postprocess: Postprocess = Postprocess(),
        mimic: RCNNTeacher | None = None,
    ) -> None:
        super().__init__()
        neck = NoNeck(backbone.out_channels, backbone.out_strides) if neck is None else neck
        self.backbone, self.neck, self.rpn = backbone, neck, rpn
        self.roi_sampler, self.roi_pool = roi_sampler, roi_pool
        self.box_head, self.predictor, self.postprocess = box_head, predictor, postprocess
        self.mimic = mimic
        if mimic is not None:
            self._check_mimic(mimic)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], num_classes: int, for_training: bool = True) -> "FasterRCNN":
        """Build the parts of a checked `model:` section, telling each what it needs to know of the others.

        for_training: with the part that only training needs, `mimic`, if the section has it.
        """
        backbone = build(config["backbone"])
        maps = {"in_channels": backbone.out_channels, "in_strides": backbone.out_strides}
        neck = NoNeck(**maps) if config["neck"] is None else build(config["neck"], **maps)
        roi_pool = build(config["roi_pool"], offered={"in_channels": neck.out_channels, "in_strides": neck.out_strides})
        channels = roi_pool.out_channels or neck.out_channels
        box_head = build(config["box_head"], in_channels=channels, output_size=roi_pool.output_size)
        known = {"in_features": box_head.out_features, "num_classes": num_classes}
        return cls(
            backbone,
            neck,
            build(config["rpn"], in_channels=neck.rpn_channels, in_strides=neck.rpn_strides),
            roi_pool,
            box_head,
            build(config["predictor"], **known),
            build(config["roi_sampler"]),
            build(config["postprocess"]),
            build(config["mimic"], **known) if for_training and config["mimic"] is not None else None,
        )

    @property
    def needs_originals(self) -> bool:
        """Whether a training forward needs the original images."""
        return self.mimic is not None and self.mimic.crop_from == "original"

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor,
        scales: Tensor,
        targets: Sequence[Targets] | None = None,
        originals: Originals | None = None,
        iteration: int | None = None,
    ) -> TrainingOutput | PackedDetections:
        """Losses when there are targets, else detections.

        images [N, 3, H, W], H and W multiples of `neck.size_divisor`; image_sizes [N, 2] (h, w) before padding; scales
        [N, 2] (y, x) = resized / original. originals: for a model that `needs_originals`, which raises ValueError
        without. iteration: how many training steps are done, for parts that come in later; None means all are in.
        """
        maps = self.backbone(images)
        features = self.neck(maps)
        rpn_features = self.neck.rpn_features(maps, features)
        logits, deltas = self.rpn(rpn_features)
        anchors = self.rpn.make_anchors(rpn_features)
        proposals = self.rpn.propose(anchors, logits, deltas, image_sizes)
        if targets is None:
            output = self.predictor(self.box_head(self._pool(features, proposals)))
            return self.postprocess(output, proposals, self.predictor.delta_weights, image_sizes, scales)
        sampled = self.roi_sampler(proposals, targets, self.predictor.num_classes)
        output = self.predictor(self.box_head(self._pool(features, sampled.rois)))
        losses = {**self.rpn.losses(anchors, logits, deltas, targets), **self.predictor.losses(output, sampled)}
        metrics = self.predictor.metrics(output, sampled)
        if self.mimic is None:
            return TrainingOutput(losses, metrics)
        mimicry = self._mimic(sampled, output.embedding, images, image_sizes, scales, originals, iteration)
        return TrainingOutput(losses | mimicry.losses, metrics | mimicry.metrics, mimicry.patches)

    def _pool(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        """RoI pooling, which under half precision stays float32, and so do the layers that make its offsets."""
        with paddle.amp.auto_cast(enable=False):
            return self.roi_pool(full_precision(*features), rois, finest)

    def _mimic(
        self,
        sampled: SampledRois,
        embedding: Tensor,
        images: Tensor,
        image_sizes: Tensor,
        scales: Tensor,
        originals: Originals | None,
        iteration: int | None,
    ) -> Mimicry:
        if not self.needs_originals:
            originals, scales = network_sources(images, image_sizes), paddle.ones_like(scales)
        elif originals is None:
            raise ValueError("patches are cut out of the original images: pass originals, or set crop_from to network")
        return self.mimic(sampled, embedding, originals, image_sizes, scales, self._embed_patches, iteration)

    def _embed_patches(self, patches: Tensor) -> Tensor:
        """Patches [B, 3, S, S] -> embedding [B, D] of each, seen as a single RoI.

        Batch norms normalise patches by their own statistics, as they do images, but do not add them to the running
        ones: those are for detection, which meets images only.
        """
        count, size = patches.shape[0], float(patches.shape[-1])
        level = self.roi_pool.level_of_square(size)
        whole = Rois(paddle.to_tensor([[0.0, 0.0, size, size]] * count), paddle.ones([count], dtype="int32"))
        backbone = self.backbone if self.mimic.backbone is None else self.mimic.backbone
        with kept_statistics(self):
            # a third of the work would be for finer levels, and none is pooled from coarser ones
            features = self.neck(backbone(patches), finest=level)[:1]
            return self.box_head(self._pool(features, whole, finest=level))

    def _check_mimic(self, mimic: RCNNTeacher) -> None:
        known, own = ((b.out_channels, b.out_strides) for b in (self.backbone, mimic.backbone or self.backbone))
        if own != known:
            raise Misfit(
                "mimic.backbone",
                f"gives (channels, strides) {own}, but the neck takes {known}; "
                "choose a backbone like the detector's, or null to share that",
            )
        stride = self.neck.size_divisor
        if mimic.crop_size % stride:
            nearest = max(round(mimic.crop_size / stride), 1) * stride
            reason = f"{mimic.crop_size} is no multiple of {stride}, the coarsest stride; choose {nearest}"
            raise Misfit("mimic.crop_size", reason)
        if mimic.include_ground_truth and not self.roi_sampler.append_ground_truth:
            reason = "there is none among the RoIs: set it to false, or roi_sampler.append_ground_truth to true"
            raise Misfit("mimic.include_ground_truth", reason)
        if mimic.include_ground_truth and mimic.kind == "background":
            raise Misfit("mimic.include_ground_truth", "ground truth is no background: set it to false")
        if any(isinstance(layer, nn.SyncBatchNorm) for layer in self.sublayers()):
            raise Misfit(
                "mimic",
                "cannot go with sync_bn: a device without positive RoIs has no patches, and the others would wait for "
                "it; choose frozen_bn, gn or bn",
            )
