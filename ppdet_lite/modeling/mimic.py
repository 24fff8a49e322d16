"""The R-CNN teacher, whose features the detector learns to mimic: in training only, never in a trained model."""

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from ppdet_lite.config.registry import Derived, register
from ppdet_lite.modeling.components import Backbone
from ppdet_lite.modeling.initialization import normal
from ppdet_lite.modeling.matching import count_true, draw
from ppdet_lite.ops.crop import crop_and_resize
from ppdet_lite.structures import Originals, Patches, Rois, SampledRois


class Omega(NamedTuple):
    """The RoIs whose features are mimicked; the paper's name for them."""

    rows: Tensor  # [B] int64, ascending: which of the sampled RoIs they are
    rois: Rois  # B boxes
    classes: Tensor  # [B] int64; K is background


class Mimicry(NamedTuple):
    """What a step with the teacher gives."""

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]
    patches: Patches | None  # None where no RoI was drawn


@register
class RCNNTeacher(nn.Layer):
    """R-CNN feature mimicking (Zhu et al. 2019, "Deformable ConvNets v2", section 3.3).

    The features of a RoI see its surroundings too, and deformable ones see more of them. An R-CNN sees nothing but the
    RoI: its patch of the image, resized, goes through the detector's own backbone, neck, RoI pooling (of the whole
    patch) and box head, then through a classifier of its own. The detector's features are drawn to these by their
    cosine; gradients reach the shared weights both ways unless stopped.

    `loss_mimic` is the mean over the drawn RoIs (Omega) of 1 - cos; the paper has the sum and leaves its normalisation
    open. `loss_mimic_cls` is the mean cross entropy of the R-CNN classifier. Without a RoI to draw both are 0.

    Args:
        backbone: a backbone of the teacher's own; null shares the detector's. Neck, RoI pooling and box head are
            always shared.
        rois_per_image: how many are drawn at random from the RoIs sampled for the box head, at most.
        rois: which of them; foreground in the paper, where mimicking background does not help.
        include_ground_truth: ground-truth boxes that were appended to the proposals can be drawn too.
        crop_size: side of the resized patches, a multiple of the neck's coarsest stride. At 224 FPN pools from its
            stride-16 level, 14 x 14.
        crop_from: `original` cuts patches out of the image in its own resolution, `network` out of the network's input.
        loss_weight, cls_loss_weight: of the two losses.
        stop_gradient: the side that `loss_mimic` does not train, `teacher` (R-CNN) or `student` (detector).
        start_iteration: training steps before the branch comes in.
    """

    def __init__(
        self,
        in_features: Derived[int],
        num_classes: Derived[int],
        backbone: Backbone | None = None,
        rois_per_image: PositiveInt = 32,
        rois: Literal["foreground", "background", "both"] = "foreground",
        include_ground_truth: bool = False,
        crop_size: PositiveInt = 224,
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
        self.stopped, self.start_iteration = stop_gradient, start_iteration
        self.classify = nn.Linear(in_features, num_classes + 1, weight_attr=normal(0.01))

    def forward(
        self,
        sampled: SampledRois,
        embedding: Tensor,
        sources: Originals,
        image_sizes: Tensor,
        scales: Tensor,
        embed: Callable[[Tensor], Tensor],
        iteration: int | None = None,
    ) -> Mimicry:
        """Losses of mimicking the patches' features in those of the sampled RoIs.

        sampled, embedding [R, D]: the RoIs of the box head and its features of them; sources: the images that patches
        are cut out of; image_sizes, scales [N, 2]: see `FasterRCNN.forward`; embed: patches [B, 3, S, S] -> [B, D];
        iteration: how many training steps are done, None for enough.
        """
        waiting = iteration is not None and iteration < self.start_iteration
        omega = None if waiting else self.draw(sampled)
        if omega is None or omega.rows.shape[0] == 0:
            return self._nothing()
        patches = Patches(self.crop(omega.rois, sources, image_sizes, scales), omega.classes)
        student, taught = paddle.gather(embedding, omega.rows), embed(patches.images)
        logits = self.classify(taught)
        with paddle.amp.auto_cast(enable=False):
            losses = self.losses(student, taught, logits, omega.classes)
            return Mimicry(losses, self.metrics(student, taught, logits, omega), patches)

    @paddle.no_grad()
    def draw(self, sampled: SampledRois) -> Omega:
        """Draw Omega from the sampled RoIs, image by image; B = 0 is possible."""
        candidates = paddle.ones_like(sampled.is_proposal)
        if self.kind != "both":
            candidates = (sampled.target_classes < self.num_classes) == (self.kind == "foreground")
        if not self.include_ground_truth:
            candidates = candidates & sampled.is_proposal
        sizes = sampled.rois.counts_on_host()
        starts, parts = itertools.accumulate(sizes, initial=0), candidates.split(sizes)
        drawn = [
            draw(part, found, self.rois_per_image) + start
            for part, found, start in zip(parts, count_true(parts), starts)
        ]
        rows = paddle.concat(drawn)
        counts = [part.shape[0] for part in drawn]
        rois = Rois(paddle.gather(sampled.rois.boxes, rows), paddle.to_tensor(counts, dtype="int32"), counts)
        return Omega(rows, rois, paddle.gather(sampled.target_classes, rows))

    @paddle.no_grad()
    def crop(self, rois: Rois, sources: Originals, image_sizes: Tensor, scales: Tensor) -> Tensor:
        """The patches [B, 3, S, S] of RoIs [B, 4] (in network-input pixels, B > 0), resized bilinearly.

        Each is seen as the network sees it, mirrored where it is.
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
            if flipped:  # from the right border; x1 > x2 mirrors the patch
                x1, x2 = size[1] - x1, size[1] - x2
            boxes = paddle.stack([x1 / scale[1], y1 / scale[0], x2 / scale[1], y2 / scale[0]], axis=1)
            patches.append(crop_and_resize(image.astype("float32"), boxes, self.crop_size, extent))
        return paddle.concat(patches)

    def losses(self, student: Tensor, teacher: Tensor, logits: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Weighted losses of features [B, D] of both sides and R-CNN logits [B, K + 1] for classes [B], in float32."""
        student, teacher, logits = (tensor.astype("float32") for tensor in (student, teacher, logits))
        student = student.detach() if self.stopped == "student" else student
        teacher = teacher.detach() if self.stopped == "teacher" else teacher
        distance = 1 - F.cosine_similarity(student, teacher, axis=1)
        return {
            "loss_mimic": self.loss_weight * distance.mean(),
            "loss_mimic_cls": self.cls_loss_weight * F.cross_entropy(logits, classes),
        }

    @paddle.no_grad()
    def metrics(self, student: Tensor, teacher: Tensor, logits: Tensor, omega: Omega) -> dict[str, Tensor]:
        """RoIs drawn per image, mean cosine of the two features, accuracy of the R-CNN's classifier."""
        cosine = F.cosine_similarity(student.astype("float32"), teacher.astype("float32"), axis=1)
        correct = (logits.argmax(axis=1) == omega.classes).astype("float32")
        return {
            "mimic_rois": omega.rois.counts.astype("float32").mean(),
            "mimic_cosine": cosine.mean(),
            "mimic_accuracy": correct.mean(),
        }

    def _nothing(self) -> Mimicry:
        """Losses of 0 that reach all weights of the branch, as other processes wait for a gradient of each."""
        zero = sum((0 * parameter.astype("float32")).sum() for parameter in self.parameters())
        losses = {"loss_mimic": zero, "loss_mimic_cls": zero}
        return Mimicry(losses, {"mimic_rois": paddle.zeros([])}, None)


def network_sources(images: Tensor, image_sizes: Tensor) -> Originals:
    """The network's input as what patches are cut out of: without its padding, and as it is mirrored or not."""
    return Originals(list(images), [False] * images.shape[0], image_sizes)
