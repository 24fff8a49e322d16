"""Region proposal network: head, proposals, losses.

Shapes: N images; L pyramid levels; A anchors per cell; M_l = H_l * W_l * A anchors of level l, M of all levels.
"""

from collections.abc import Sequence
from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppdet_lite.config.constrained_types import (
    DeltaWeights,
    Fraction,
    Layers,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)
from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.anchors import AnchorGenerator
from ppdet_lite.modeling.initialization import normal
from ppdet_lite.modeling.layers import Conv2D
from ppdet_lite.modeling.losses import DEFAULT_BETA, BoxLossName, require_used_beta, sum_box_loss
from ppdet_lite.modeling.matching import Matcher, Sampler
from ppdet_lite.ops import dispatch
from ppdet_lite.ops.boxes import clip_boxes, decode_boxes, encode_boxes
from ppdet_lite.ops.layers import relu
from ppdet_lite.ops.nms import nms_mask
from ppdet_lite.structures import Rois, Targets

REMOVED_SCORE = -1e30  # score of candidates that NMS removed or that are too small: below any logit


@register
class RPN(nn.Layer):
    """Proposes boxes from every pyramid level (Faster R-CNN, section 3.1; FPN, section 4.1).

    Args:
        pre_nms_train, pre_nms_test: maximum number of candidates per level before NMS.
        post_nms_train, post_nms_test: maximum number of proposals per image after NMS.
        train_limit_over: whether `post_nms_train` limits each image (detectron2, torchvision, mmdetection) or the whole
            batch of a device (PaddleDetection).
        min_size: proposals are dropped unless their clipped width and height are above this number of pixels.
        delta_weights, box_loss, beta: see `BoxPredictor`.
        convs: number of 3x3 convolutions before the two output layers; torchvision's version 2 has two.
    """

    def __init__(
        self,
        in_channels: Derived[int],
        in_strides: Derived[Sequence[int]],
        anchors: AnchorGenerator = AnchorGenerator(),
        matcher: Matcher = Matcher(0.7, 0.3, keep_best=True),
        sampler: Sampler = Sampler(256, 0.5),
        nms_iou: Fraction = 0.7,
        pre_nms_train: PositiveInt = 2000,
        post_nms_train: PositiveInt = 1000,
        pre_nms_test: PositiveInt = 1000,
        post_nms_test: PositiveInt = 1000,
        train_limit_over: Literal["image", "batch"] = "image",
        min_size: NonNegativeFloat = 0.0,
        delta_weights: DeltaWeights = (1.0, 1.0, 1.0, 1.0),
        box_loss: BoxLossName = "l1",
        beta: PositiveFloat = DEFAULT_BETA,
        convs: Layers = 1,
    ) -> None:
        super().__init__()
        if len(anchors.sizes) != len(in_strides):
            raise IncompatibleArguments(
                "anchors.sizes",
                f"{len(anchors.sizes)} anchor sizes for {len(in_strides)} pyramid levels (strides "
                f"{', '.join(map(str, in_strides))}): give one size, or one list of sizes, for each level",
            )
        self.strides = list(in_strides)
        self.anchors, self.matcher, self.sampler = anchors, matcher, sampler
        self.nms_iou, self.min_size = nms_iou, min_size
        self.pre_nms_train, self.post_nms_train = pre_nms_train, post_nms_train
        self.pre_nms_test, self.post_nms_test = pre_nms_test, post_nms_test
        self.train_limit_over = train_limit_over
        require_used_beta(box_loss, beta)
        self.delta_weights, self.box_loss, self.beta = tuple(delta_weights), box_loss, beta
        init = normal(0.01)
        self.conv, *more = [Conv2D(in_channels, in_channels, 3, padding=1, weight_attr=init) for _ in range(convs)]
        self.more_convs = nn.LayerList(more)
        self.objectness = Conv2D(in_channels, anchors.per_cell, 1, weight_attr=init)
        self.regress = Conv2D(in_channels, 4 * anchors.per_cell, 1, weight_attr=init)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return objectness logits [N, M_l] and deltas [N, M_l, 4] of each level, in the order of the anchors."""
        logits, deltas = [], []
        for feature in features:
            hidden = relu(self.conv(feature))
            for conv in self.more_convs:
                hidden = relu(conv(hidden))
            # flatten H and W first: a CPU transposes a tensor with more axes ten times more slowly
            logits.append(self.objectness(hidden).flatten(2).transpose([0, 2, 1]).flatten(1).astype("float32"))
            per_cell = self.regress(hidden).flatten(2).transpose([0, 2, 1])  # [N, H * W, 4A], anchor-major
            deltas.append(per_cell.reshape([0, -1, 4]).astype("float32"))
        return logits, deltas

    def make_anchors(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the anchors [M_l, 4] of each level, in network-input pixels."""
        return self.anchors(features, self.strides)

    @paddle.no_grad()
    def propose(
        self, anchors: Sequence[Tensor], logits: Sequence[Tensor], deltas: Sequence[Tensor], image_sizes: Tensor
    ) -> Rois:
        """Return the proposals of each image, best first, clipped to image_sizes [N, 2] (h, w). NMS runs per level.

        Each image has at least one proposal: a box of the whole image if all candidates are too small.
        """
        pre_nms = self.pre_nms_train if self.training else self.pre_nms_test
        best = [_best_of_level(*level, pre_nms) for level in zip(anchors, logits, deltas)]
        if paddle.in_dynamic_mode():
            candidates = self._candidates(*(paddle.concat(parts, axis=1) for parts in zip(*best)), image_sizes)
            boxes, scores = self._suppress_by_image(*candidates, [part.shape[1] for *_, part in best])
        else:
            boxes, scores = self._suppress_by_level([self._candidates(*level, image_sizes) for level in best])
        return self._best_per_image(boxes, scores)

    def _candidates(
        self, anchors: Tensor, deltas: Tensor, scores: Tensor, image_sizes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return boxes [N, k, 4] decoded from anchors [N, k, 4], and their logits [N, k].

        Boxes that are too small are replaced by the whole image and get REMOVED_SCORE.
        """
        boxes = clip_boxes(decode_boxes(anchors, deltas, self.delta_weights), image_sizes.unsqueeze(1))
        valid = (boxes[..., 2:] - boxes[..., :2] > self.min_size).all(axis=-1)  # False if a coordinate is NaN
        scores = paddle.where(valid, scores, paddle.full_like(scores, REMOVED_SCORE))
        image_boxes = paddle.concat([paddle.zeros_like(image_sizes), image_sizes[:, ::-1]], axis=1).unsqueeze(1)
        return paddle.where(valid.unsqueeze(-1), boxes, image_boxes.expand_as(boxes)), scores

    def _suppress_by_image(self, boxes: Tensor, scores: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Apply NMS to each image and level; `sizes` are the numbers of candidates per level.

        The cost of an NMS call grows with the square of the number of boxes, so there is one call per image and level
        on a CPU. On a GPU there is one call per image, because each call synchronizes.
        """
        parts = sizes if dispatch.on_cpu(scores) else [sum(sizes)]
        level = paddle.concat([paddle.full([size], i, dtype="int64") for i, size in enumerate(sizes)])
        rows = []
        for image in zip(boxes, scores):
            split = (tensor.split(parts) for tensor in (*image, level))
            rows.append(paddle.concat([self._suppress(*part) for part in zip(*split)]))
        return boxes, paddle.stack(rows)

    def _suppress_by_level(self, levels: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Apply NMS to each image and level in a traced graph, which cannot loop over images: one call per level."""
        scores = []
        for boxes, logits in levels:
            image = paddle.arange(logits.shape[0], dtype="int64").unsqueeze(1).expand_as(logits)
            scores.append(self._suppress(boxes, logits, image))
        return paddle.concat([boxes for boxes, _ in levels], axis=1), paddle.concat(scores, axis=1)

    def _suppress(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        """Apply NMS in each group; return the scores, of any shape, with REMOVED_SCORE for suppressed boxes."""
        keep = nms_mask(boxes.reshape([-1, 4]), scores.flatten(), groups.flatten(), self.nms_iou)
        return paddle.where(keep.reshape(scores.shape), scores, paddle.full_like(scores, REMOVED_SCORE))

    def _best_per_image(self, boxes: Tensor, scores: Tensor) -> Rois:  # [N, M, 4], [N, M]; applies post_nms_*
        scores, index = _top(scores, self.post_nms_train if self.training else self.post_nms_test)
        keep = scores > REMOVED_SCORE
        if self.training and self.train_limit_over == "batch":
            threshold = _top(scores.reshape([1, -1]), self.post_nms_train)[0][0, -1]
            keep = keep & (scores >= threshold)
        keep = keep | (paddle.arange(scores.shape[1]) == 0)  # so that every image has a RoI
        counts, boxes = keep.astype("int32").sum(axis=1, dtype="int32"), _gather_rows(boxes, index)
        if self.training:  # RoI sampling needs the counts on the host; the kept boxes come first in each image's row
            sizes = counts.tolist()
            rows = boxes.reshape([len(sizes), -1, 4])
            return Rois(paddle.concat([rows[i, :size] for i, size in enumerate(sizes)]), counts, sizes)
        rows = paddle.nonzero(keep.flatten()).flatten()
        return Rois(paddle.gather(boxes, rows), counts)

    def losses(
        self, anchors: Sequence[Tensor], logits: Sequence[Tensor], deltas: Sequence[Tensor], targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        """Return the binary cross entropy over the sampled anchors and the box loss over their foreground.

        Both are divided by N times the sampler's count, as in detectron2 and PaddleDetection.
        """
        anchors, logits, deltas = paddle.concat(anchors), paddle.concat(logits, 1), paddle.concat(deltas, 1)
        matches = [self.matcher(anchors, target) for target in targets]
        samples = self.sampler([part.labels for part in matches])
        foreground = [part for part, _ in samples]
        labels = [paddle.full([part.shape[0]], label) for pair in samples for part, label in zip(pair, (1.0, 0.0))]
        # one gather for all images, because the gradient of each gather has the size of all logits
        score = paddle.gather(logits.flatten(), _rows_of_batch([paddle.concat(pair) for pair in samples], anchors))
        # binary cross entropy with logits; Paddle's operator has a wrong gradient at a logit of exactly 0
        loss_objectness = (F.softplus(score) - score * paddle.concat(labels)).sum()
        matched_boxes = [
            paddle.gather(target.boxes, paddle.gather(part.target_index, rows))
            for target, part, rows in zip(targets, matches, foreground)
        ]
        foreground_anchors = paddle.gather(anchors, paddle.concat(foreground))
        target_deltas = encode_boxes(foreground_anchors, paddle.concat(matched_boxes), self.delta_weights)
        predicted = paddle.gather(deltas.reshape([-1, 4]), _rows_of_batch(foreground, anchors))
        loss_box = sum_box_loss(predicted, target_deltas, self.box_loss, self.beta)
        count = len(targets) * self.sampler.count
        return {"loss_rpn_objectness": loss_objectness / count, "loss_rpn_box": loss_box / count}


def _best_of_level(anchors: Tensor, logits: Tensor, deltas: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return anchors and deltas [N, k, 4] and logits [N, k] of the `count` best anchors of a level in each image."""
    scores, index = _top(logits, count)
    best = paddle.gather(anchors, index.flatten()), _gather_rows(deltas, index)
    return *(rows.reshape([scores.shape[0], -1, 4]) for rows in best), scores


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` highest scores of each row [N, M] (all if there are fewer), descending, and their indices."""
    if paddle.in_dynamic_mode():
        return paddle.topk(scores, min(count, scores.shape[1]), axis=1)
    available = paddle.shape(scores)[1]
    count = paddle.minimum(available, paddle.full([], count, dtype=available.dtype))
    return paddle.topk(scores, count, axis=1)


def _rows_of_batch(rows: Sequence[Tensor], anchors: Tensor) -> Tensor:
    """Convert anchor indices of each image to row indices of a table [N * M, ...], image after image; concatenate."""
    return paddle.concat([part + image * anchors.shape[0] for image, part in enumerate(rows)])


def _gather_rows(table: Tensor, index: Tensor) -> Tensor:
    """Gather rows of each image: table [N, M, 4], index [N, k] -> [N * k, 4]."""
    batch, rows = table.shape[0], table.shape[1]
    first = paddle.arange(batch, dtype=index.dtype).unsqueeze(1) * rows
    return paddle.gather(table.reshape([-1, 4]), (index + first).flatten())
