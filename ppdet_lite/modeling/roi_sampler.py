"""Which RoIs train the box head, and what each should answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor

from ppdet_lite.config.registry import register
from ppdet_lite.modeling.matching import Matcher, Sampler, split_crowds
from ppdet_lite.structures import Rois, SampledRois, Targets


@register
@dataclass(frozen=True)
class RoISampler:
    """Matches proposals with the ground truth and draws a balanced set of them (Fast R-CNN, section 2.3).

    Args:
        append_ground_truth: offer the ground-truth boxes as proposals too, so that early training has foreground.
    """

    matcher: Matcher = Matcher(0.5, 0.5)
    sampler: Sampler = Sampler(512, 0.25)
    append_ground_truth: bool = True

    @paddle.no_grad()
    def __call__(self, proposals: Rois, targets: Sequence[Targets], num_classes: int) -> SampledRois:
        """Draw from each image's proposals; foreground RoIs stand before background ones in each image."""
        parts = [
            self._sample_image(boxes, target, num_classes)
            for boxes, target in zip(proposals.boxes.split(proposals.counts.tolist()), targets)
        ]
        boxes, classes, target_boxes, is_proposal = (paddle.concat(field) for field in zip(*parts))
        counts = paddle.to_tensor([part[0].shape[0] for part in parts], dtype="int32")
        return SampledRois(Rois(boxes, counts), classes, target_boxes, is_proposal)

    def _sample_image(self, boxes: Tensor, target: Targets, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        objects = split_crowds(target)[0]
        is_proposal = paddle.ones([boxes.shape[0]], dtype="bool")
        if self.append_ground_truth and objects.boxes.shape[0]:
            boxes = paddle.concat([boxes, objects.boxes])
            is_proposal = paddle.concat([is_proposal, paddle.zeros([objects.boxes.shape[0]], dtype="bool")])
        matches = self.matcher(boxes, target)
        foreground, background = self.sampler(matches.labels)
        drawn = paddle.concat([foreground, background])
        boxes, is_proposal = paddle.gather(boxes, drawn), paddle.gather(is_proposal, drawn)
        if objects.boxes.shape[0] == 0:
            return boxes, paddle.full([drawn.shape[0]], num_classes, dtype="int64"), boxes, is_proposal
        index = paddle.gather(matches.target_index, drawn)
        is_foreground = paddle.arange(drawn.shape[0]) < foreground.shape[0]
        classes = paddle.gather(objects.classes, index)
        classes = paddle.where(is_foreground, classes, paddle.full_like(classes, num_classes))
        return boxes, classes, paddle.gather(objects.boxes, index), is_proposal
