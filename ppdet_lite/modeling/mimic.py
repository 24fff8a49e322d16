"""R-CNN feature mimicking: a teacher whose features the detector learns to mimic, used in training only."""

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppdet_lite.config.constrained_types import NonNegativeFloat, NonNegativeInt, Pixels, PositiveInt
from ppdet_lite.config.registry import Derived, register
from ppdet_lite.modeling.components import Backbone
from ppdet_lite.modeling.initialization import normal
from ppdet_lite.modeling.layers import Linear
from ppdet_lite.modeling.matching import count_true, sample_true
from ppdet_lite.ops.crop import crop_and_resize
from ppdet_lite.structures import Originals, Patches, Rois, SampledRois


class Omega(NamedTuple):
    """The B RoIs whose features are mimicked, called Omega in the paper."""

    rows: Tensor  # [B] int64, ascending: their indices in `SampledRois`
    rois: Rois  # B boxes
    classes: Tensor  # [B] int64; K is background


class MimicOutput(NamedTuple):
    """The result of `RCNNTeacher`."""

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    patches: Patches | None  # None if no RoI was sampled


@register
class RCNNTeacher(nn.Layer):
    """R-CNN feature mimicking (Zhu et al. 2019, "Deformable ConvNets v2", section 3.3).

    The detector's features of a RoI also depend on its surroundings, more so with deformable convolutions. Those of an
    R-CNN depend on the RoI only: the image patch inside the RoI is resized and passed through the detector's own
    backbone, neck, RoI pooling (of the whole patch) and box head, and then through a separate classifier. The loss
    increases the cosine similarity of the two; gradients reach the shared weights through both, unless stopped.

    `loss_mimic` is the mean of 1 - cosine over the sampled RoIs (Omega); the paper has a sum without a stated
    normalization. `loss_mimic_cls` is the mean cross entropy of the R-CNN classifier. Both are 0 if Omega is empty.

    Args:
        backbone: separate backbone of the teacher; null shares the detector's. Neck, RoI pooling and box head are
            always shared.
        rois_per_image: maximum number of RoIs sampled per image from the RoIs of the box head.
        rois: candidates for sampling; foreground in the paper, which reports no gain from mimicking background.
        include_ground_truth: also sample ground-truth boxes that were appended to the proposals.
        crop_size: side of the resized patches, a multiple of the neck's coarsest stride. With 224, FPN pools from its
            stride-16 level of 14 x 14 cells.
        crop_from: crop patches from the image in its `original` resolution or from the input of the `network`.
        loss_weight, cls_loss_weight: weights of the two losses.
        stop_gradient: the features that get no gradient of `loss_mimic`: `teacher` (R-CNN) or `student` (detector).
        start_iteration: number of training steps before the losses start.
    """

    def __init__(
        self,
        in_features: Derived[int],
        num_classes: Derived[int],
        backbone: Backbone | None = None,
        rois_per_image: PositiveInt = 32,
        rois: Literal["foreground", "background", "both"] = "foreground",
        include_ground_truth: bool = False,
        crop_size: Pixels = 224,
        crop_from: Literal["original", "network"] = "original",
        loss_weight: NonNegativeFloat = 0.1,
        cls_loss_weight: NonNegativeFloat = 0.1,
        stop_gradient: Literal["none", "teacher", "student"] = "none",
        start_iteration: NonNegativeInt = 0,
    ) -> None:
        super().__init__()
        self.backbone, self.num_classes = backbone, num_classes
        self.rois_per_image, self.kind, self.include_ground_truth = rois_per_image, rois, include_ground_truth
        self.crop_size, self.crop_from = crop_size, crop_from
        self.loss_weight, self.cls_loss_weight = loss_weight, cls_loss_weight
        self.stopped_side, self.start_iteration = stop_gradient, start_iteration
        self.classify = Linear(in_features, num_classes + 1, weight_attr=normal(0.01))

    def forward(
        self,
        sampled: SampledRois,
        embedding: Tensor,
        sources: Originals,
        image_sizes: Tensor,
        scales: Tensor,
        embed: Callable[[Tensor], Tensor],
        iteration: int | None = None,
    ) -> MimicOutput:
        """Compute the losses between the features of sampled RoIs and those of their image patches.

        sampled, embedding [R, E]: the RoIs of the box head and their features; sources: the images from which patches
        are cropped; image_sizes, scales [N, 2], iteration: see `FasterRCNN.forward`; embed: a function that computes
        the features of patches, [B, 3, S, S] -> [B, E].
        """
        not_started = iteration is not None and iteration < self.start_iteration
        omega = None if not_started else self.sample(sampled)
        if omega is None or omega.rows.shape[0] == 0:
            return self._zero_losses()
        patches = Patches(self.crop(omega.rois, sources, image_sizes, scales), omega.classes)
        student, teacher = paddle.gather(embedding, omega.rows), embed(patches.images)
        logits = self.classify(teacher)
        with paddle.amp.auto_cast(enable=False):
            losses = self.losses(student, teacher, logits, omega.classes)
            return MimicOutput(losses, self.metrics(student, teacher, logits, omega), patches)

    @paddle.no_grad()
    def sample(self, sampled: SampledRois) -> Omega:
        """Sample Omega from the RoIs of each image; B = 0 is possible."""
        candidates = paddle.ones_like(sampled.is_proposal)
        if self.kind != "both":
            candidates = (sampled.target_classes < self.num_classes) == (self.kind == "foreground")
        if not self.include_ground_truth:
            candidates = candidates & sampled.is_proposal
        sizes = sampled.rois.counts_on_host()
        starts, parts = itertools.accumulate(sizes, initial=0), candidates.split(sizes)
        rows_by_image = [
            sample_true(mask, available, self.rois_per_image) + start
            for mask, available, start in zip(parts, count_true(parts), starts)
        ]
        rows = paddle.concat(rows_by_image)
        counts = [image_rows.shape[0] for image_rows in rows_by_image]
        rois = Rois(paddle.gather(sampled.rois.boxes, rows), paddle.to_tensor(counts, dtype="int32"), counts)
        return Omega(rows, rois, paddle.gather(sampled.target_classes, rows))

    @paddle.no_grad()
    def crop(self, rois: Rois, sources: Originals, image_sizes: Tensor, scales: Tensor) -> Tensor:
        """Return the resized patches [B, 3, S, S] of RoIs [B, 4] (in network-input pixels, B > 0).

        A patch is mirrored if the network input is.
        """
        patches = []
        parts = rois.boxes.astype("float64").split(rois.counts_on_host())
        extents = [None] * len(parts) if sources.sizes is None else sources.sizes
        image_sizes, scales = image_sizes.astype("float64"), scales.astype("float64")
        for boxes, image, extent, flipped, size, scale in zip(
            parts, sources.images, extents, sources.flipped, image_sizes, scales
        ):
            if boxes.shape[0] == 0:
                continue
            x1, y1, x2, y2 = boxes.unbind(axis=1)
            if flipped:  # x from the right border; x1 > x2 mirrors the patch
                x1, x2 = size[1] - x1, size[1] - x2
            boxes = paddle.stack([x1 / scale[1], y1 / scale[0], x2 / scale[1], y2 / scale[0]], axis=1)
            patches.append(crop_and_resize(image, boxes, self.crop_size, extent))
        return paddle.concat(patches)

    def losses(self, student: Tensor, teacher: Tensor, logits: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return the weighted losses of features [B, E], R-CNN logits [B, K + 1] and classes [B], in float32."""
        student, teacher, logits = (tensor.astype("float32") for tensor in (student, teacher, logits))
        student = student.detach() if self.stopped_side == "student" else student
        teacher = teacher.detach() if self.stopped_side == "teacher" else teacher
        distance = 1 - F.cosine_similarity(student, teacher, axis=1)
        return {
            "loss_mimic": self.loss_weight * distance.mean(),
            "loss_mimic_cls": self.cls_loss_weight * F.cross_entropy(logits, classes),
        }

    @paddle.no_grad()
    def metrics(self, student: Tensor, teacher: Tensor, logits: Tensor, omega: Omega) -> dict[str, Tensor]:
        """Return the sampled RoIs per image, the mean cosine similarity, and the accuracy of the R-CNN classifier."""
        cosine = F.cosine_similarity(student.astype("float32"), teacher.astype("float32"), axis=1)
        correct = (logits.argmax(axis=1) == omega.classes).astype("float32")
        return {
            "mimic_rois": omega.rois.counts.astype("float32").mean(),
            "mimic_cosine": cosine.mean(),
            "mimic_accuracy": correct.mean(),
        }

    def _zero_losses(self) -> MimicOutput:
        """Return losses of 0 that give every weight of the branch a gradient, since other ranks may wait for these."""
        zero = sum((0 * parameter.astype("float32")).sum() for parameter in self.parameters())
        losses = {"loss_mimic": zero, "loss_mimic_cls": zero}
        return MimicOutput(losses, {"mimic_rois": paddle.zeros([])}, None)


def network_sources(images: Tensor, image_sizes: Tensor) -> Originals:
    """Return the network input as the source of patches: without padding, and never mirrored again."""
    return Originals(list(images), [False] * images.shape[0], image_sizes)
