"""Which RoIs train the box head, and what each should answer."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import paddle
from paddle import Tensor

from ppdet_lite.config.registry import register
from ppdet_lite.modeling.matching import Matcher, Matches, Sampler
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
        offered = proposals.boxes.split(proposals.counts_on_host())
        if self.append_ground_truth:
            offered = [paddle.concat([boxes, target.boxes]) for boxes, target in zip(offered, targets)]
        matches = [self.matcher(boxes, target) for boxes, target in zip(offered, targets)]
        drawn = self.sampler([part.labels for part in matches])
        parts = [self._with_targets(*image, num_classes) for image in zip(offered, matches, drawn, targets)]
        boxes, classes, target_boxes, is_proposal = (paddle.concat(field) for field in zip(*parts))
        sizes = [part[0].shape[0] for part in parts]
        starts = itertools.accumulate(sizes, initial=0)
        foreground = [paddle.arange(start, start + rows.shape[0]) for start, (rows, _) in zip(starts, drawn)]
        rois = Rois(boxes, paddle.to_tensor(sizes, dtype="int32"), sizes)
        return SampledRois(rois, classes, target_boxes, is_proposal, paddle.concat(foreground))

    def _with_targets(
        self,
        boxes: Tensor,
        matches: Matches,
        drawn: tuple[Tensor, Tensor],
        target: Targets,
        num_classes: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What is drawn of an image's boxes, with the fields of `SampledRois`: classes, target boxes, is_proposal."""
        rows = paddle.concat(drawn)
        appended = target.boxes.shape[0] if self.append_ground_truth else 0
        is_proposal = rows < boxes.shape[0] - appended
        boxes = paddle.gather(boxes, rows)
        if target.boxes.shape[0] == 0:
            return boxes, paddle.full([rows.shape[0]], num_classes, dtype="int64"), boxes, is_proposal
        index = paddle.gather(matches.target_index, rows)
        is_foreground = paddle.arange(rows.shape[0]) < drawn[0].shape[0]
        classes = paddle.gather(target.classes, index)
        classes = paddle.where(is_foreground, classes, paddle.full_like(classes, num_classes))
        return boxes, classes, paddle.gather(target.boxes, index), is_proposal
