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
    training: bool = False,
) -> Tensor:
    """RoIAlign (Mask R-CNN, section 3) of each RoI on its level: [R, C, P, P].

    sampling_ratio: samples per bin and axis; 0 adapts it to the RoI's size, ceil(bin size in cells).
    aligned: the half-pixel shift that puts a cell's value at its centre.
    training: gradients will be wanted. It changes the implementation only.

    Computed in float32, or in float64 if the features are. There are four implementations, equal to rounding:

    - Paddle's operator, level by level. Eager, on a GPU, or on a CPU without gradients.
    - `deform_roi_pool` without offsets. In training on a CPU, aligned: Paddle's gradient takes four times as long.
    - `cpu.roi_windows`. Traced: it gathers windows, since Paddle's operator on a CPU is slow in exported graphs.
    - Paddle's operator again, traced, for RoIs whose window is too large to gather.

    The last three are proven against the first or a slow oracle by tests/ops/test_deform_roi_pool.py and
    test_roi_windows.py, the first by test_roi_align.py and test_torchvision_ops.py.
    """
    scales = [1.0 / stride for stride in strides]
    if training and aligned and dispatch.eager_on_cpu(features[0]):
        return deform_roi_pool(features, rois.boxes, rois.counts, output_size, scales, sampling_ratio, level=level)

    def pool(i: int, feature: Tensor, part: Rois) -> Tensor:
        return roi_align(feature, part.boxes, part.counts, output_size, scales[i], sampling_ratio or -1, aligned)

    with paddle.amp.auto_cast(enable=False):
        features = full_precision(*features)
        if paddle.in_dynamic_mode():
            return pool_by_level(features, rois, level, pool)
        image = image_of_roi(rois.counts, rois.boxes.shape[0])

        def pool_natively(chosen: Tensor) -> Tensor:
            counts = count_groups(paddle.gather(image, chosen), rois.counts.shape[0])
            some = Rois(paddle.gather(rois.boxes, chosen), counts)
            return pool_by_level(features, some, paddle.gather(level, chosen), pool)

        options = (output_size, sampling_ratio, aligned, pool_natively)
        return window_roi_align(features, scales, rois.boxes, image, level, *options)
