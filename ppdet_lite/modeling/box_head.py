"""Box heads (pooled RoI features -> embedding) and the box predictor (embedding -> class logits and box deltas)."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppdet_lite.config.constrained_types import Channels, DeltaWeights, Layers, PositiveFloat
from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.components import BoxHead
from ppdet_lite.modeling.deform import Deformable
from ppdet_lite.modeling.initialization import normal, xavier_fill
from ppdet_lite.modeling.layers import Linear
from ppdet_lite.modeling.losses import DEFAULT_BETA, BoxLossName, require_used_beta, sum_box_loss
from ppdet_lite.modeling.norm import ConvNorm, NormName
from ppdet_lite.modeling.residual import BlockStyle, Depth, Variant, residual_stage, stage_channels
from ppdet_lite.ops.boxes import encode_boxes
from ppdet_lite.structures import BoxHeadOutput, SampledRois


@register
class TwoFCHead(BoxHead):
    """Two fully connected layers (FPN, section 4.2)."""

    def __init__(self, in_channels: Derived[int], output_size: Derived[int], width: Channels = 1024) -> None:
        super().__init__()
        self.out_features = width
        self.fc1 = Linear(in_channels * output_size**2, width, weight_attr=xavier_fill())
        self.fc2 = Linear(width, width, weight_attr=xavier_fill())

    def forward(self, pooled: Tensor) -> Tensor:
        """[R, C, P, P] -> [R, width]."""
        return F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))


@register
class ConvFCHead(BoxHead):
    """Convolutions and one fully connected layer, such as "4conv1fc" (Group Normalization, section 4.2)."""

    def __init__(
        self,
        in_channels: Derived[int],
        output_size: Derived[int],
        convs: Layers = 4,
        conv_channels: Channels = 256,
        width: Channels = 1024,
        norm: NormName = "none",
    ) -> None:
        super().__init__()
        self.out_features = width
        channels = [in_channels, *[conv_channels] * convs]
        self.convs = nn.LayerList([ConvNorm(channels[i], conv_channels, 3, norm=norm) for i in range(convs)])
        self.fc = Linear(channels[-1] * output_size**2, width, weight_attr=xavier_fill())

    def forward(self, pooled: Tensor) -> Tensor:
        """[R, C, P, P] -> [R, width]."""
        for block in self.convs:
            pooled = F.relu(block(pooled))
        return F.relu(self.fc(pooled.flatten(1)))


@register
class Res5Head(BoxHead):
    """Stage 5 of a ResNet applied to each RoI, then average pooling: the head of a C4 detector (He et al. 2015).

    Args:
        depth, norm, variant, groups, base_width: see `ResNet`. They are independent of the backbone's; the recipes set
            depth and norm to those of the backbone: `depth: ${model.backbone.depth}`.
        deformable: settings of deformable 3x3 convolutions, whose `stages` must contain 5; null for plain convolutions.
    """

    def __init__(
        self,
        in_channels: Derived[int],
        output_size: Derived[int],
        depth: Depth = 50,
        norm: NormName = "frozen_bn",
        variant: Variant = "b",
        groups: Channels = 1,
        base_width: Channels = 64,
        deformable: Deformable | None = None,
    ) -> None:
        super().__init__()
        if in_channels != stage_channels(depth, 4):
            raise IncompatibleArguments(
                "depth",
                f"stage 5 of ResNet {depth} needs the {stage_channels(depth, 4)} channels of stage 4, but RoI features "
                f"have {in_channels}: set the backbone's depth to {depth} and out_stages to [4], and use no neck",
            )
        if deformable is not None and 5 not in deformable.stages:
            reason = f"{list(deformable.stages)} must contain 5, the stage of this head"
            raise IncompatibleArguments("deformable.stages", reason)
        self.out_features = stage_channels(depth, 5)
        style = BlockStyle(norm, variant, groups, base_width, deformable)
        self.res5 = residual_stage(depth, 5, in_channels, 2, style)

    def forward(self, pooled: Tensor) -> Tensor:
        """[R, C, P, P] -> [R, E]."""
        return F.adaptive_avg_pool2d(self.res5(pooled), 1).flatten(1)


@register
class BoxPredictor(nn.Layer):
    """The layers for classification and box regression, with their losses (Fast R-CNN, section 2.3).

    Args:
        class_agnostic: predict one box per RoI instead of one per class.
        delta_weights: factors of (dx, dy, dw, dh), chosen so that regression targets have about unit variance.
        box_loss: `l1` (detectron2, PaddleDetection, mmdetection) or `smooth_l1` with `beta` (torchvision).
    """

    def __init__(
        self,
        in_features: Derived[int],
        num_classes: Derived[int],
        class_agnostic: bool = False,
        delta_weights: DeltaWeights = (10.0, 10.0, 5.0, 5.0),
        box_loss: BoxLossName = "l1",
        beta: PositiveFloat = DEFAULT_BETA,
    ) -> None:
        super().__init__()
        self.num_classes, self.class_agnostic = num_classes, class_agnostic
        self.delta_weights = tuple(delta_weights)
        require_used_beta(box_loss, beta)
        self.box_loss, self.beta = box_loss, beta
        self.classify = Linear(in_features, num_classes + 1, weight_attr=normal(0.01))
        deltas = 4 if class_agnostic else 4 * num_classes
        self.regress = Linear(in_features, deltas, weight_attr=normal(0.001))

    def forward(self, embedding: Tensor) -> BoxHeadOutput:
        """[R, E] -> BoxHeadOutput; class K is background, and deltas are ordered by class, then (dx, dy, dw, dh)."""
        return BoxHeadOutput(embedding, self.classify(embedding), self.regress(embedding))

    def losses(self, output: BoxHeadOutput, sampled: SampledRois) -> dict[str, Tensor]:
        """Return cross entropy over all RoIs and box loss over the foreground, both divided by the number of RoIs."""
        classes = sampled.target_classes
        count = max(classes.shape[0], 1)
        loss_cls = F.cross_entropy(output.logits.astype("float32"), classes, reduction="sum") / count
        foreground = sampled.foreground
        boxes = paddle.gather(sampled.rois.boxes, foreground)
        targets = encode_boxes(boxes, paddle.gather(sampled.target_boxes, foreground), self.delta_weights)
        deltas = self._deltas_of_class(output.deltas, classes, foreground)
        loss_box = sum_box_loss(deltas.astype("float32"), targets, self.box_loss, self.beta) / count
        return {"loss_cls": loss_cls, "loss_box": loss_box}

    def _deltas_of_class(self, deltas: Tensor, classes: Tensor, rows: Tensor) -> Tensor:  # [F, 4] of F rows
        if self.class_agnostic:
            return paddle.gather(deltas, rows)
        flat = rows * self.num_classes + paddle.gather(classes, rows)
        return paddle.gather(deltas.reshape([-1, 4]), flat)

    @paddle.no_grad()
    def metrics(self, output: BoxHeadOutput, sampled: SampledRois) -> dict[str, Tensor]:
        """Return the accuracy over all RoIs and over the foreground, and the number of foreground RoIs per image."""
        classes = sampled.target_classes
        correct = (output.logits.argmax(axis=1) == classes).astype("float32")
        foreground = (classes < self.num_classes).astype("float32")
        return {
            "accuracy": correct.sum() / max(classes.shape[0], 1),
            "foreground_accuracy": (correct * foreground).sum() / foreground.sum().clip(min=1),
            "foreground_rois": foreground.sum() / sampled.rois.counts.shape[0],
        }
