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
    """Decodes boxes, drops low scores, applies NMS per class, keeps the best, and scales to the original image.

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
        self, output: BoxHeadOutput, rois: Rois, delta_weights: Sequence[float], image_sizes: Tensor, scales: Tensor
    ) -> PackedDetections:
        """Return detections in original-image pixels.

        image_sizes [N, 2] (h, w) of the network input; scales [N, 2] (y, x) = resized / original size. Boxes are
        clipped to the original size, computed as image_sizes / scales, rounded.
        """
        image = image_of_roi(rois.counts, rois.boxes.shape[0])
        scores = F.softmax(output.logits.astype("float32"), axis=1)[:, :-1]
        deltas = output.deltas.astype("float32").reshape([rois.boxes.shape[0], -1, 4])
        boxes = decode_boxes(rois.boxes.unsqueeze(1), deltas, delta_weights)
        boxes = clip_boxes(boxes, paddle.gather(image_sizes, image).unsqueeze(1))
        boxes = boxes.expand([-1, scores.shape[1], 4])  # when class-agnostic, all classes share one box
        has_area = (boxes[..., 2:] > boxes[..., :2]).all(axis=-1)
        candidates = paddle.nonzero((scores > self.score_threshold) & has_area)
        roi, classes = candidates[:, 0], candidates[:, 1]
        image_count, num_classes = image_sizes.shape[0], scores.shape[1]
        flat = roi * num_classes + classes
        boxes, scores = paddle.gather(boxes.reshape([-1, 4]), flat), paddle.gather(scores.flatten(), flat)
        image = paddle.gather(image, roi)
        kept = grouped_nms(boxes, scores, image * num_classes + classes, self.nms_iou)
        kept = paddle.gather(kept, paddle.argsort(paddle.gather(image, kept), stable=True))
        rank = rank_in_group(paddle.gather(image, kept), image_count)
        kept = paddle.gather(kept, paddle.nonzero(rank < self.max_detections).flatten())
        # float64, because oneDNN's float32 kernels crash if D = 0; for float64 it has none, and Paddle's are used
        boxes, image = paddle.gather(boxes, kept).astype("float64"), paddle.gather(image, kept)
        image_sizes, scales = image_sizes.astype("float64"), scales.astype("float64")
        original_sizes = paddle.floor(image_sizes / scales + 0.5)
        factor = paddle.gather(scales, image)[:, ::-1]  # (x, y)
        boxes = clip_boxes(boxes / paddle.concat([factor, factor], axis=1), paddle.gather(original_sizes, image))
        counts = count_groups(image, image_count)
        return PackedDetections(
            boxes.astype("float32"), paddle.gather(scores, kept), paddle.gather(classes, kept), counts
        )
