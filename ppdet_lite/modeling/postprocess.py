"""From the box head's answers to final detections."""

from collections.abc import Sequence
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from pydantic import PositiveInt

from ppdet_lite.config.constrained_types import Share
from ppdet_lite.config.registry import register
from ppdet_lite.ops.boxes import clip_boxes, decode_boxes
from ppdet_lite.ops.nms import count_groups, grouped_nms, rank_in_group
from ppdet_lite.ops.roi_levels import image_of_roi
from ppdet_lite.structures import BoxHeadOutput, PackedDetections, Rois


@register
@dataclass(frozen=True)
class Postprocess:
    """Decode, threshold, NMS per class, keep the best, map to the original image (Faster R-CNN, section 3.1).

    Args:
        score_threshold: less probable boxes are dropped.
        nms_iou: overlap above which the lesser of two boxes of a class is dropped.
        max_detections: kept per image, over all classes.
    """

    score_threshold: Share = 0.05
    nms_iou: Share = 0.5
    max_detections: PositiveInt = 100

    @paddle.no_grad()
    def __call__(
        self,
        output: BoxHeadOutput,
        rois: Rois,
        delta_weights: Sequence[float],
        image_sizes: Tensor,
        scales: Tensor,
    ) -> PackedDetections:
        """Detections in original-image pixels.

        image_sizes [N, 2] (h, w) of the network input; scales [N, 2] (y, x) = resized / original. Boxes are clipped to
        the original size as these two give it, to half a resized pixel.
        """
        image = image_of_roi(rois.counts, rois.boxes.shape[0])
        scores = F.softmax(output.logits.astype("float32"), axis=1)[:, :-1]
        deltas = output.deltas.astype("float32").reshape([rois.boxes.shape[0], -1, 4])
        boxes = decode_boxes(rois.boxes.unsqueeze(1), deltas, delta_weights)
        boxes = clip_boxes(boxes, paddle.gather(image_sizes, image).unsqueeze(1))
        boxes = boxes.expand([-1, scores.shape[1], 4])  # one box for all classes when class-agnostic
        has_area = (boxes[..., 2:] > boxes[..., :2]).all(axis=-1)
        candidates = paddle.nonzero((scores > self.score_threshold) & has_area)
        roi, class_index = candidates[:, 0], candidates[:, 1]
        flat = roi * scores.shape[1] + class_index
        return self._select(
            paddle.gather(boxes.reshape([-1, 4]), flat),
            paddle.gather(scores.flatten(), flat),
            class_index,
            paddle.gather(image, roi),
            scores.shape[1],
            image_sizes,
            scales,
        )

    def _select(
        self,
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor,
        image: Tensor,
        num_classes: int,
        image_sizes: Tensor,
        scales: Tensor,
    ) -> PackedDetections:
        image_count = image_sizes.shape[0]
        kept = grouped_nms(boxes, scores, image * num_classes + classes, self.nms_iou)
        kept = paddle.gather(kept, paddle.argsort(paddle.gather(image, kept), stable=True))
        rank = rank_in_group(paddle.gather(image, kept), image_count)
        kept = paddle.gather(kept, paddle.nonzero(rank < self.max_detections).flatten())
        # The rest in float64, for which oneDNN has no kernels: those it has for float32 crash on D = 0.
        boxes, image = paddle.gather(boxes, kept).astype("float64"), paddle.gather(image, kept)
        image_sizes, scales = image_sizes.astype("float64"), scales.astype("float64")
        original_sizes = paddle.floor(image_sizes / scales + 0.5)
        factor = paddle.gather(scales, image)[:, ::-1]  # (x, y)
        boxes = clip_boxes(boxes / paddle.concat([factor, factor], axis=1), paddle.gather(original_sizes, image))
        counts = count_groups(image, image_count)
        return PackedDetections(
            boxes.astype("float32"), paddle.gather(scores, kept), paddle.gather(classes, kept), counts
        )
