"""The one convolution + normalisation of the house, and the norms it can carry."""

import contextlib
from collections.abc import Iterator
from typing import Literal

import paddle
from paddle import ParamAttr, Tensor, nn

from ppdet_lite.modeling.convolution import Conv2D
from ppdet_lite.modeling.deform import Deformable, DeformConv2D
from ppdet_lite.modeling.initialization import kaiming_normal
from ppdet_lite.ops.layers import frozen_norm, group_norm

STATISTICS = ("._mean", "._variance")  # how the names of a batch norm's statistics end, which are no weights

NormName = Literal["none", "bn", "frozen_bn", "frozen_stats_bn", "sync_bn", "gn", "ln", "in"]


class FrozenBatchNorm(nn.Layer):
    """Batch normalisation with fixed statistics: a per-channel affine transform, in training too.

    Parameter and buffer names are those of `nn.BatchNorm2D`, so that either loads the other's weights.

    Args:
        trainable_affine: learn weight and bias (mmdetection's `norm_eval`); else they are fixed as well.
    """

    def __init__(self, channels: int, trainable_affine: bool = False, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.epsilon = epsilon
        ones, zeros = nn.initializer.Constant(1.0), nn.initializer.Constant(0.0)
        self.weight = self.create_parameter([channels], default_initializer=ones)
        self.bias = self.create_parameter([channels], default_initializer=zeros, is_bias=True)
        self.weight.stop_gradient = self.bias.stop_gradient = not trainable_affine
        self.register_buffer("_mean", paddle.zeros([channels]))
        self.register_buffer("_variance", paddle.ones([channels]))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return frozen_norm(x, self._mean, self._variance, self.weight, self.bias, self.epsilon)


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`, quick on a CPU too."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return group_norm(x, self._num_groups, self.weight, self.bias, self._epsilon)


def build_norm(name: NormName, channels: int) -> nn.Layer | None:
    """A norm over [N, C, H, W] by its short name; None for "none".

    `ln` and `in` are group norms with one group and with a group per channel: statistics over C, H, W of an image, and
    over H, W of a channel (Group Normalization, figure 2). `gn` has 32 groups, as in that paper.
    """
    match name:
        case "none":
            return None
        case "bn":
            return nn.BatchNorm2D(channels)
        case "frozen_bn":
            return FrozenBatchNorm(channels)
        case "frozen_stats_bn":
            return FrozenBatchNorm(channels, trainable_affine=True)
        case "sync_bn":
            if not paddle.is_compiled_with_cuda():
                raise ValueError("sync_bn runs on GPUs only; on a CPU choose bn, frozen_bn or gn")
            return nn.SyncBatchNorm(channels)
        case "gn":
            if channels % 32:
                raise ValueError(f"gn has 32 groups: {channels} channels cannot be divided among them")
            return GroupNorm(32, channels)
        case "ln":
            return GroupNorm(1, channels)
        case "in":
            return GroupNorm(channels, channels)
    raise ValueError(f"unknown norm {name!r}")


def running_statistics(model: nn.Layer) -> list[Tensor]:
    """The means and variances that the batch norms of a model gather in training."""
    norms = [layer for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D | nn.SyncBatchNorm)]
    return [statistic for norm in norms for statistic in (norm._mean, norm._variance)]


@contextlib.contextmanager
def kept_statistics(model: nn.Layer) -> Iterator[None]:
    """Meanwhile the batch norms of a model leave their running statistics as they are.

    In training they still normalise by the statistics of what they are given.
    """
    norms = [layer for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D | nn.SyncBatchNorm)]
    momenta = [norm._momentum for norm in norms]
    try:
        for norm in norms:
            norm._momentum = 1.0  # the share of what was there before
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm._momentum = momentum


class ConvNorm(nn.Layer):
    """Convolution, then a norm if one is named; a bias only without a norm. "Same" padding at stride 1.

    Args:
        deformable: makes it a deformable convolution; it then needs a norm.
        groups: of channels that are convolved apart.
        weights: how the convolution's begin (`modeling.initial`); None for kaiming_normal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        norm: NormName = "none",
        deformable: Deformable | None = None,
        groups: int = 1,
        weights: ParamAttr | None = None,
    ) -> None:
        super().__init__()
        if deformable is not None:
            self.conv = DeformConv2D(in_channels, out_channels, kernel, stride, dilation, deformable, groups, weights)
        else:
            self.conv = Conv2D(
                in_channels,
                out_channels,
                kernel,
                stride=stride,
                padding=dilation * (kernel - 1) // 2,
                dilation=dilation,
                groups=groups,
                weight_attr=weights or kaiming_normal(),
                bias_attr=None if norm == "none" else False,
            )
        self.norm = build_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, ceil(H/stride), ceil(W/stride)]."""
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)
