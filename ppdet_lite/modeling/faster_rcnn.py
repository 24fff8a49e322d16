"""Faster R-CNN: runs its components in order, for training and for inference."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn

from ppdet_lite.config.registry import build, register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.box_head import BoxPredictor
from ppdet_lite.modeling.components import Backbone, BoxHead, Neck, RoIPool
from ppdet_lite.modeling.mimic import MimicOutput, RCNNTeacher, network_sources
from ppdet_lite.modeling.neck import NoNeck
from ppdet_lite.modeling.norm import frozen_running_statistics, has_sync_bn
from ppdet_lite.modeling.postprocess import Postprocess, recover_sizes
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.modeling.rpn import RPN
from ppdet_lite.ops.checks import full_precision
from ppdet_lite.structures import BoxHeadOutput, Originals, PackedDetections, Patches, Rois, SampledRois, Targets


class TrainingOutput(NamedTuple):
    """The result of `FasterRCNN.forward` with targets."""

    losses: dict[str, Tensor]  # scalars whose sum is minimized
    metrics: dict[str, Tensor]  # scalars for logs; they have no gradient
    patches: Patches | None = None  # the input of the R-CNN teacher; None without a teacher or without sampled RoIs


class TrainedRois(NamedTuple):
    """The RoIs that train the box head, its output for them, and its losses."""

    sampled: SampledRois
    output: BoxHeadOutput
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]


@register
class FasterRCNN(nn.Layer):
    """Faster R-CNN (Ren et al. 2015), with a feature pyramid (Lin et al. 2017) or without.

    Args:
        neck: null if the RPN and the RoI pooling use the single feature map of the backbone.
        mimic: R-CNN teacher whose features the detector mimics; null for none. It is used in training only.
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
        """Build a detector from a validated `model:` section, and pass each component its `Derived` arguments.

        for_training: build `mimic`, which only training uses, if the section contains it.
        """
        backbone = build(config["backbone"])
        maps = {"in_channels": backbone.out_channels, "in_strides": backbone.out_strides}
        neck = NoNeck(**maps) if config["neck"] is None else build(config["neck"], **maps)
        roi_pool, box_head = build_box_head(config, neck)
        head = {"in_features": box_head.out_features, "num_classes": num_classes}
        return cls(
            backbone,
            neck,
            build(config["rpn"], in_channels=neck.rpn_channels, in_strides=neck.rpn_strides),
            roi_pool,
            box_head,
            build(config["predictor"], **head),
            build(config["roi_sampler"]),
            build(config["postprocess"]),
            build(config["mimic"], **head) if for_training and config["mimic"] is not None else None,
            **cls._own_arguments(config, neck, num_classes),
        )

    @classmethod
    def _own_arguments(cls, config: Mapping[str, Any], neck: Neck, num_classes: int) -> dict[str, Any]:
        """Return the constructor's arguments that a subclass has in addition."""
        return {}

    @property
    def needs_originals(self) -> bool:
        """Whether `forward` needs the original images in training."""
        return self.mimic is not None and self.mimic.crop_from == "original"

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor,
        scales: Tensor,
        targets: Sequence[Targets] | None = None,
        originals: Originals | None = None,
        iteration: int | None = None,
        original_sizes: Tensor | None = None,
    ) -> TrainingOutput | PackedDetections:
        """Return losses and metrics if there are targets, otherwise detections.

        images [N, 3, H, W], H and W multiples of `neck.size_divisor`; image_sizes [N, 2] (h, w) before padding; scales
        [N, 2] (y, x) = resized / original size; originals: required in training if `needs_originals`; iteration: number
        of completed training steps, for losses that start later (None: all losses are active); original_sizes [N, 2]
        (h, w): detections are clipped to them (None: `recover_sizes`, which may be off by some pixels).
        Raises ValueError if required originals are missing.
        """
        maps = self.backbone(images)
        features = self.neck(maps)
        rpn_features = self.neck.rpn_features(maps, features)
        logits, deltas = self.rpn(rpn_features)
        anchors = self.rpn.make_anchors(rpn_features)
        proposals = self.rpn.propose(anchors, logits, deltas, image_sizes)
        if targets is None:
            output, rois = self._predict(features, proposals, image_sizes)
            sizes = image_sizes, recover_sizes(image_sizes, scales) if original_sizes is None else original_sizes
            return self.postprocess(output, rois, self.predictor.delta_weights, *sizes, scales)
        sampled, output, box_losses, metrics = self._train(features, proposals, targets, image_sizes)
        losses = {**self.rpn.losses(anchors, logits, deltas, targets), **box_losses}
        if self.mimic is None:
            return TrainingOutput(losses, metrics)
        mimic = self._mimic(sampled, output.embedding, images, image_sizes, scales, originals, iteration)
        return TrainingOutput(losses | mimic.losses, metrics | mimic.metrics, mimic.patches)

    def _predict(self, features: Sequence[Tensor], proposals: Rois, image_sizes: Tensor) -> tuple[BoxHeadOutput, Rois]:
        """Return the box head's output and the RoIs to which its deltas apply. image_sizes: see `forward`."""
        return self._run_head(features, proposals), proposals

    def _train(
        self, features: Sequence[Tensor], proposals: Rois, targets: Sequence[Targets], image_sizes: Tensor
    ) -> TrainedRois:
        """Sample RoIs and compute the losses of the box head for them."""
        sampled = self.roi_sampler(proposals, targets, self.predictor.num_classes)
        output = self._run_head(features, sampled.rois)
        losses, metrics = self.predictor.losses(output, sampled), self.predictor.metrics(output, sampled)
        return TrainedRois(sampled, output, losses, metrics)

    def _run_head(self, features: Sequence[Tensor], rois: Rois) -> BoxHeadOutput:
        return self.predictor(self.box_head(self._pool(features, rois)))

    def _pool(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        return pool_in_float32(self.roi_pool, features, rois, finest)

    def _mimic(
        self,
        sampled: SampledRois,
        embedding: Tensor,
        images: Tensor,
        image_sizes: Tensor,
        scales: Tensor,
        originals: Originals | None,
        iteration: int | None,
    ) -> MimicOutput:
        if not self.needs_originals:
            originals, scales = network_sources(images, image_sizes), paddle.ones_like(scales)
        elif originals is None:
            raise ValueError("patches are cropped from the original images: pass originals, or set crop_from=network")
        return self.mimic(sampled, embedding, originals, image_sizes, scales, self._embed_patches, iteration)

    def _embed_patches(self, patches: Tensor) -> Tensor:
        """Return the embedding of each whole patch as one RoI: [B, 3, S, S] -> [B, E].

        Batch norms in training mode normalize patches by the statistics of the patches. The running statistics are not
        updated, because inference uses them for images only.
        """
        count, size = patches.shape[0], float(patches.shape[-1])
        level = self.roi_pool.level_of_square(size)
        whole = Rois(paddle.to_tensor([[0.0, 0.0, size, size]] * count), paddle.ones([count], dtype="int32"))
        backbone = self.backbone if self.mimic.backbone is None else self.mimic.backbone
        with frozen_running_statistics(self):
            # skipping finer levels saves a third of the work; no RoI is pooled from coarser levels
            features = self.neck(backbone(patches), finest=level)[:1]
            return self.box_head(self._pool(features, whole, finest=level))

    def _check_mimic(self, mimic: RCNNTeacher) -> None:
        student, teacher = ((b.out_channels, b.out_strides) for b in (self.backbone, mimic.backbone or self.backbone))
        if teacher != student:
            raise IncompatibleArguments(
                "mimic.backbone",
                f"has (channels, strides) {teacher}, but the neck needs {student}; "
                "choose a backbone like the detector's, or null to share the detector's",
            )
        stride = self.neck.size_divisor
        if mimic.crop_size % stride:
            nearest = max(round(mimic.crop_size / stride), 1) * stride
            reason = f"{mimic.crop_size} is not a multiple of {stride}, the coarsest stride; choose {nearest}"
            raise IncompatibleArguments("mimic.crop_size", reason)
        if mimic.include_ground_truth and not self.roi_sampler.append_ground_truth:
            reason = "the RoIs contain no ground truth: set it to false, or roi_sampler.append_ground_truth to true"
            raise IncompatibleArguments("mimic.include_ground_truth", reason)
        if mimic.include_ground_truth and mimic.kind == "background":
            reason = "with rois: background, no ground truth can be sampled: set it to false"
            raise IncompatibleArguments("mimic.include_ground_truth", reason)
        if has_sync_bn(self):
            raise IncompatibleArguments(
                "mimic",
                "cannot be combined with sync_bn: the other devices would wait for a device that samples no RoIs; "
                "choose frozen_bn, gn or bn",
            )


def build_box_head(config: Mapping[str, Any], neck: Neck) -> tuple[RoIPool, BoxHead]:
    """Build the RoI pooling and the box head of a `model:` section."""
    levels = {"in_channels": neck.out_channels, "in_strides": neck.out_strides}
    roi_pool = build(config["roi_pool"], available=levels)
    channels = roi_pool.out_channels or neck.out_channels
    return roi_pool, build(config["box_head"], in_channels=channels, output_size=roi_pool.output_size)


def pool_in_float32(roi_pool: RoIPool, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
    """Pool RoIs and compute pooling offsets in float32, also in mixed precision; see `RoIPool.forward`."""
    with paddle.amp.auto_cast(enable=False):
        return roi_pool(full_precision(*features), rois, finest)
