"""RoI pooling components."""

from collections.abc import Sequence

from paddle import Tensor

from ppdet_lite.core.registry import Derived, register
from ppdet_lite.modeling.components import RoIPool
from ppdet_lite.ops.deform_roi_pool import deform_roi_pool
from ppdet_lite.ops.roi_align import pyramid_level, pyramid_roi_align
from ppdet_lite.structures import Rois


@register
class RoIAlign(RoIPool):
    """RoIAlign from the pyramid level that suits each RoI's size.

    Args:
        sampling_ratio: samples per bin and axis; 0 adapts to the RoI (detectron2, mmdetection, PaddleDetection), 2 is
            torchvision's.
        aligned: half-pixel correct (detectron2, mmdetection) or not (torchvision, PaddleDetection).
        levels: how many of the finest levels are pooled from; FPN's fifth serves the RPN alone.
        canonical_size, canonical_level: a RoI of this side, in pixels, is pooled from this level, counted from 0 at the
            finest (FPN: 224 and the stride-16 level).
    """

    def __init__(
        self,
        in_strides: Derived[Sequence[int]],
        output_size: int = 7,
        sampling_ratio: int = 0,
        aligned: bool = True,
        levels: int = 4,
        canonical_size: float = 224.0,
        canonical_level: int = 2,
    ) -> None:
        super().__init__()
        self.strides = list(in_strides)[:levels]
        self.output_size, self.sampling_ratio, self.aligned = output_size, sampling_ratio, aligned
        self.canonical_size, self.canonical_level = canonical_size, canonical_level

    def forward(self, features: Sequence[Tensor], rois: Rois) -> Tensor:
        """Features [N, C, H_l, W_l] and R RoIs -> [R, C, P, P]."""
        features = features[: len(self.strides)]
        level = pyramid_level(rois.boxes, len(features), self.canonical_size, self.canonical_level)
        if self.training and self.aligned and features[0].place.is_cpu_place():
            # the same numbers; on a CPU Paddle's own gradient takes four times as long
            scales = [1.0 / stride for stride in self.strides]
            return deform_roi_pool(
                features, rois.boxes, rois.counts, self.output_size, scales, self.sampling_ratio, level=level
            )
        return pyramid_roi_align(
            features, self.strides, rois, level, self.output_size, self.sampling_ratio, self.aligned
        )
