"""Operators on tensors: box arithmetic, NMS, bilinear sampling, deformable convolution and RoI pooling.

May import core, structures and ops/cpu.
"""

from ppdet_lite.ops.deform_conv import deform_conv2d
from ppdet_lite.ops.deform_roi_pool import deform_roi_pool

__all__ = ["deform_conv2d", "deform_roi_pool"]
