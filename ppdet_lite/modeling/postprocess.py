"""Postprocessing of the box head's output to final detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor

from ppdet_lite.config.constrained_types import Fraction, PositiveInt
from ppdet_lite.config.registry import register
from ppdet_lite.ops.boxes import clip_boxes, decode_boxes
from ppdet_lite.ops.nms import count_groups, grouped_nms, rank_in_group
from ppdet_lite.ops.roi_levels import image_of_roi
from ppdet_lite.structures import BoxHeadOutput, PackedDetections, Rois


@register
@dataclass(frozen=True)
class Postprocess:
    """Decodes boxes, drops low scores, applies NMS per class, and keeps the best, in pixels of the original image.

    Args:
        score_threshold: boxes whose score is not above it are dropped.
        nms_iou: of two boxes of a class with a larger IoU, the one with the lower score is dropped.
        max_detections: maximum number of detections per image, over all classes.
    """

    score_threshold: Fraction = 0.05
    nms_iou: Fraction = 0.5
    max_detections: PositiveInt = 100

    @paddle.no_grad()
    def __call__(
        self, output: BoxHeadOutput, rois: Rois, delta_weights: Sequence[float], original_sizes: Tensor, scales: Tensor
    ) -> PackedDetections:
        """Return detections in original-image pixels, clipped to original_sizes [N, 2] (h, w).

        scales [N, 2] (y, x) = resized / original size. RoIs are scaled before they are decoded, which moves and
        stretches boxes in proportion to their RoI. NMS is not affected: IoU does not depend on the scales of the axes.
        """
        image = image_of_roi(rois.counts, rois.boxes.shape[0])
        factor = paddle.gather(scales, image)[:, ::-1]  # (x, y)
        regions = rois.boxes / paddle.concat([factor, factor], axis=1)
        scores = F.softmax(output.logits.astype("float32"), axis=1)[:, :-1]
        deltas = output.deltas.astype("float32").reshape([rois.boxes.shape[0], -1, 4])
        boxes = decode_boxes(regions.unsqueeze(1), deltas, delta_weights)
        boxes = clip_boxes(boxes, paddle.gather(original_sizes, image).unsqueeze(1))
        boxes = boxes.expand([-1, scores.shape[1], 4])  # when class-agnostic, all classes share one box
        has_area = (boxes[..., 2:] > boxes[..., :2]).all(axis=-1)
        candidates = paddle.nonzero((scores > self.score_threshold) & has_area)
        roi, classes = candidates[:, 0], candidates[:, 1]
        image_count, num_classes = scales.shape[0], scores.shape[1]
        flat = roi * num_classes + classes
        boxes, scores = paddle.gather(boxes.reshape([-1, 4]), flat), paddle.gather(scores.flatten(), flat)
        image = paddle.gather(image, roi)
        kept = grouped_nms(boxes, scores, image * num_classes + classes, self.nms_iou)
        kept = paddle.gather(kept, paddle.argsort(paddle.gather(image, kept), stable=True))
        rank = rank_in_group(paddle.gather(image, kept), image_count)
        kept = paddle.gather(kept, paddle.nonzero(rank < self.max_detections).flatten())
        counts = count_groups(paddle.gather(image, kept), image_count)
        return PackedDetections(
            paddle.gather(boxes, kept), paddle.gather(scores, kept), paddle.gather(classes, kept), counts
        )


def recover_sizes(image_sizes: Tensor, scales: Tensor) -> Tensor:
    """Return original sizes [N, 2], computed as image_sizes / scales and rounded.

    They are exact if image_sizes = scales * original sizes. If image_sizes were rounded and scales were not, they are
    wrong by up to half a pixel of the network input: 3456 x 5184 at a scale of 640 / 5184 becomes 427 x 640, from which
    3459 x 5184 is recovered.
    """
    return paddle.floor(image_sizes.astype("float64") / scales.astype("float64") + 0.5).astype("float32")
