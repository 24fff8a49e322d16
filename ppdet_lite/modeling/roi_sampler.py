"""Sampling of the RoIs that train the box head, and their targets."""

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
    """Matches proposals with the ground truth and samples foreground and background (Fast R-CNN, section 2.3).

    Args:
        append_ground_truth: add the ground-truth boxes to the proposals, so that there is foreground from the start.
    """

    matcher: Matcher = Matcher(0.5, 0.5)
    sampler: Sampler = Sampler(512, 0.25)
    append_ground_truth: bool = True

    @paddle.no_grad()
    def __call__(self, proposals: Rois, targets: Sequence[Targets], num_classes: int) -> SampledRois:
        """Sample RoIs from the proposals of each image; in each image foreground RoIs precede background RoIs."""
        candidates = proposals.boxes.split(proposals.counts_on_host())
        if self.append_ground_truth:
            candidates = [paddle.concat([boxes, target.boxes]) for boxes, target in zip(candidates, targets)]
        matches = [self.matcher(boxes, target) for boxes, target in zip(candidates, targets)]
        samples = self.sampler([part.labels for part in matches])
        parts = [self._with_targets(*image, num_classes) for image in zip(candidates, matches, samples, targets)]
        boxes, classes, target_boxes, is_proposal = (paddle.concat(field) for field in zip(*parts))
        sizes = [part[0].shape[0] for part in parts]
        starts = itertools.accumulate(sizes, initial=0)
        foreground = [paddle.arange(start, start + rows.shape[0]) for start, (rows, _) in zip(starts, samples)]
        rois = Rois(boxes, paddle.to_tensor(sizes, dtype="int32"), sizes)
        return SampledRois(rois, classes, target_boxes, is_proposal, paddle.concat(foreground))

    def _with_targets(
        self, boxes: Tensor, matches: Matches, samples: tuple[Tensor, Tensor], target: Targets, num_classes: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the sampled boxes of one image with their target classes, target boxes and `is_proposal`."""
        rows = paddle.concat(samples)
        appended = target.boxes.shape[0] if self.append_ground_truth else 0
        is_proposal = rows < boxes.shape[0] - appended
        boxes = paddle.gather(boxes, rows)
        if target.boxes.shape[0] == 0:
            return boxes, paddle.full([rows.shape[0]], num_classes, dtype="int64"), boxes, is_proposal
        index = paddle.gather(matches.target_index, rows)
        is_foreground = paddle.arange(rows.shape[0]) < samples[0].shape[0]
        classes = paddle.gather(target.classes, index)
        classes = paddle.where(is_foreground, classes, paddle.full_like(classes, num_classes))
        return boxes, classes, paddle.gather(target.boxes, index), is_proposal
