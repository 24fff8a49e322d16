"""Deformable 3x3 convolution as a layer: the offset branch and its host."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from pydantic import Field, PositiveFloat, PositiveInt

from ppdet_lite.config.registry import register
from ppdet_lite.modeling.convolution import Conv2D
from ppdet_lite.modeling.initialization import kaiming_normal, zeros
from ppdet_lite.ops.checks import full_precision
from ppdet_lite.ops.deform_conv import deform_conv2d


@register
@dataclass(frozen=True)
class Deformable:
    """Which 3x3 convolutions of a backbone are deformable, and how.

    version: 1 moves the samples (Dai et al. 2017), 2 also weighs them by a mask (Zhu et al. 2019).
    stages: out of 2..5; v1's paper has the last three convolutions of stage 5, v2's all of stages 3 to 5.
    groups: deformable groups, each with offsets of its own.
    mask_scale: the mask is this times a sigmoid. 2 (the authors' code) starts at 1, so that a pretrained network says
        at first what it said before; 1 (mmdetection, detectron2, PaddleDetection) starts at 0.5. Version 2 only.
    offset_lr: learning rate of the offset branch, relative to the others.
    """

    version: Literal[1, 2] = 2
    stages: Annotated[Sequence[Literal[2, 3, 4, 5]], Field(min_length=1)] = (3, 4, 5)
    groups: PositiveInt = 1
    mask_scale: Literal[1, 2] = 1
    offset_lr: PositiveFloat = 0.1


class DeformConv2D(nn.Layer):
    """A convolution whose offsets, and in version 2 masks, come from a convolution of the same input.

    The weight is named as an `nn.Conv2D`'s, so that pretrained weights fit; the branch starts at zero.

    weights: how the convolution's begin (`modeling.initial`); None for kaiming_normal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        dilation: int,
        settings: Deformable,
        groups: int = 1,
        weights: ParamAttr | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.stride, self.dilation, self.groups = settings, stride, dilation, groups
        self.padding = dilation * (kernel - 1) // 2
        self.weight = self.create_parameter(
            [out_channels, in_channels // groups, kernel, kernel], attr=weights or kaiming_normal()
        )
        self.bias = None  # a norm follows
        taps = settings.groups * kernel * kernel
        self.offset_channels = 2 * taps
        self.offset = Conv2D(
            in_channels,
            (2 if settings.version == 1 else 3) * taps,
            kernel,
            stride=stride,
            padding=self.padding,
            dilation=dilation,
            weight_attr=zeros(settings.offset_lr),
            bias_attr=zeros(settings.offset_lr),
        )

    def offsets(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Offsets in pixels of x [N, 2GK, H', W'] (dy, dx per tap) and, in version 2, the mask [N, GK, H', W']."""
        with paddle.amp.auto_cast(enable=False):  # half precision knows places to a few hundredths of a pixel only
            branch = self.offset(full_precision(x)[0])
        if self.settings.version == 1:
            return branch, None
        mask = F.sigmoid(branch[:, self.offset_channels :]) * self.settings.mask_scale
        return branch[:, : self.offset_channels], mask

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H/stride, W/stride]."""
        offset, mask = self.offsets(x)
        return deform_conv2d(
            x,
            offset,
            self.weight,
            mask,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            deformable_groups=self.settings.groups,
            groups=self.groups,
        )
