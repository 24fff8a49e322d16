"""RoIAlign over a feature pyramid."""

from collections.abc import Sequence

import paddle
from paddle import Tensor
from paddle.vision.ops import roi_align

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.checks import full_precision
from ppdet_lite.ops.cpu.roi_windows import window_roi_align
from ppdet_lite.ops.deform_roi_pool import deform_roi_pool
from ppdet_lite.ops.nms import count_groups
from ppdet_lite.ops.roi_levels import image_of_roi, pool_by_level
from ppdet_lite.structures import Rois


def pyramid_roi_align(
    features: Sequence[Tensor],
    strides: Sequence[int],
    rois: Rois,
    level: Tensor,
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Apply RoIAlign (Mask R-CNN, section 3) to each RoI on its pyramid level: [R, C, P, P], P = output_size.

    level [R] int64: index into `features` and `strides` for each RoI. sampling_ratio: samples per bin and axis; 0
    adapts it to the RoI: ceil(bin size in cells). aligned: apply the half-pixel shift that puts a cell's value at its
    center; without it, RoIs are at least one cell large.

    Computed in float32, or in float64 if the features are. There are four implementations, equal up to rounding:

    - `deform_roi_pool` without offsets: eager on a CPU, where Paddle's operator is slow and its gradient wrong.
    - Paddle's operator, level by level: eager on a GPU.
    - `cpu.roi_windows`: in traced graphs, which run on a CPU.
    - Paddle's operator in traced graphs: for RoIs whose window is too large for `cpu.roi_windows`.

    tests/ops/test_roi_align.py and test_torchvision_ops.py test the first two; test_roi_windows.py compares the third
    with the first.
    """
    scales = [1.0 / stride for stride in strides]
    if dispatch.eager_on_cpu(features[0]):
        semantics = "aligned" if aligned else "unaligned"
        return deform_roi_pool(
            features, rois.boxes, rois.counts, output_size, scales, sampling_ratio, semantics=semantics, level=level
        )

    def pool(i: int, feature: Tensor, part: Rois) -> Tensor:
        return roi_align(feature, part.boxes, part.counts, output_size, scales[i], sampling_ratio or -1, aligned)

    with paddle.amp.auto_cast(enable=False):
        features = full_precision(*features)
        if paddle.in_dynamic_mode():
            return pool_by_level(features, rois, level, pool)
        image = image_of_roi(rois.counts, rois.boxes.shape[0])

        def pool_subset(indices: Tensor) -> Tensor:
            counts = count_groups(paddle.gather(image, indices), rois.counts.shape[0])
            subset = Rois(paddle.gather(rois.boxes, indices), counts)
            return pool_by_level(features, subset, paddle.gather(level, indices), pool)

        return window_roi_align(
            features, scales, rois.boxes, image, level, output_size, sampling_ratio, aligned, fallback=pool_subset
        )
