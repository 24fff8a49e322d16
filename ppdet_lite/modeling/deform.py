"""Deformable convolution as a layer, with the convolution that predicts its offsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import paddle
import paddle.nn.functional as F
from paddle import ParamAttr, Tensor, nn
from pydantic import Field

from ppdet_lite.config.constrained_types import Channels, PositiveFloat
from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.initialization import kaiming_normal, zeros
from ppdet_lite.modeling.layers import Conv2D
from ppdet_lite.ops.checks import full_precision
from ppdet_lite.ops.deform_conv import deform_conv2d


@register
@dataclass(frozen=True)
class Deformable:
    """Settings of the deformable convolutions of a backbone: all 3x3 convolutions of some stages.

    version: 1 moves the samples (Dai et al. 2017), 2 also scales them by a mask (Zhu et al. 2019).
    stages: out of 2..5. The paper of version 1 uses the last three convolutions of stage 5, that of version 2 all of
        stages 3 to 5.
    groups: deformable groups, each with its own offsets.
    mask_scale: factor of the sigmoid that computes the mask; version 2 only. With 2 (the authors' code) the mask is
        initially 1, which leaves the output of pretrained weights unchanged; with 1 (mmdetection, detectron2,
        PaddleDetection) it is initially 0.5.
    offset_lr: learning rate of the offset branch relative to the rest of the model.
    """

    version: Literal[1, 2] = 2
    stages: Annotated[Sequence[Literal[2, 3, 4, 5]], Field(min_length=1)] = (3, 4, 5)
    groups: Channels = 1
    mask_scale: Literal[1, 2] = 1
    offset_lr: PositiveFloat = 0.1

    def __post_init__(self) -> None:
        if self.version == 1 and self.mask_scale != 1:
            raise IncompatibleArguments("mask_scale", "version 1 has no mask; remove it, or set version to 2")


class DeformConv2D(nn.Layer):
    """A deformable convolution and its branch: a convolution of the same input that computes the offsets and the mask.

    The weight has the same name as in `nn.Conv2D`, so that pretrained weights load. The branch is initialized with 0.

    weight_init: initialization of the weight (see `modeling.initialization`); None: kaiming_normal.
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
        weight_init: ParamAttr | None = None,
    ) -> None:
        super().__init__()
        if in_channels % settings.groups:
            reason = f"{settings.groups} groups do not divide the {in_channels} channels of a convolution"
            raise IncompatibleArguments("deformable.groups", f"{reason}; choose 1, 2 or 4")
        self.settings, self.stride, self.dilation, self.groups = settings, stride, dilation, groups
        self.padding = dilation * (kernel - 1) // 2
        self.weight = self.create_parameter(
            [out_channels, in_channels // groups, kernel, kernel], attr=weight_init or kaiming_normal()
        )
        self.bias = None  # a norm follows
        samples = settings.groups * kernel * kernel  # G * K
        self.offset_channels = 2 * samples
        self.offset = Conv2D(
            in_channels,
            (2 if settings.version == 1 else 3) * samples,
            kernel,
            stride=stride,
            padding=self.padding,
            dilation=dilation,
            weight_attr=zeros(settings.offset_lr),
            bias_attr=zeros(settings.offset_lr),
        )

    def offsets(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return offsets [N, 2GK, H', W'] in pixels of x, and the mask [N, GK, H', W'] or None; see `deform_conv2d`."""
        with paddle.amp.auto_cast(enable=False):  # 16-bit floats resolve only a few hundredths of a pixel
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
