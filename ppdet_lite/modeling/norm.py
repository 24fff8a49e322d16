"""Norm layers, and the convolution + norm block of which all networks here consist."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Literal

import paddle
from paddle import ParamAttr, Tensor, nn

from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.deform import Deformable, DeformConv2D
from ppdet_lite.modeling.initialization import kaiming_normal
from ppdet_lite.modeling.layers import Conv2D
from ppdet_lite.ops.layers import frozen_norm, group_norm

STATISTICS_SUFFIXES = ("._mean", "._variance")  # name endings of running statistics, which are not trained weights

NormName = Literal["none", "bn", "frozen_bn", "frozen_stats_bn", "sync_bn", "gn", "ln", "in"]


class FrozenBatchNorm(nn.Layer):
    """Batch normalization with fixed statistics: a per-channel affine transform, also in training.

    Parameters and buffers have the names of `nn.BatchNorm2D`, so that each loads weights of the other.

    Args:
        trainable_affine: learn weight and bias, as with mmdetection's `norm_eval`; otherwise they are fixed too.
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
    """`nn.GroupNorm` with a faster implementation on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> the same shape."""
        return group_norm(x, self._num_groups, self.weight, self.bias, self._epsilon)


NORM_LAYERS = (nn.BatchNorm2D, nn.SyncBatchNorm, nn.GroupNorm, FrozenBatchNorm)


def build_norm(name: NormName, channels: int) -> nn.Layer | None:
    """Build the norm with this short name for inputs [N, C, H, W]; return None for "none".

    Layer norm (`ln`) is a group norm with one group, instance norm (`in`) one with a group per channel (Group
    Normalization, figure 2). `gn` has 32 groups, as in that paper.
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
                raise IncompatibleArguments("norm", "sync_bn needs a GPU; on a CPU choose bn, frozen_bn or gn")
            return nn.SyncBatchNorm(channels)
        case "gn":
            if channels % 32:
                reason = f"gn has 32 groups: the number of channels must be a multiple of 32, not {channels}"
                raise IncompatibleArguments("norm", reason)
            return GroupNorm(32, channels)
        case "ln":
            return GroupNorm(1, channels)
        case "in":
            return GroupNorm(channels, channels)
    raise ValueError(f"unknown norm {name!r}")


def norm_layers(model: nn.Layer) -> list[nn.Layer]:
    """Return the norms of a model."""
    return [layer for layer in model.sublayers() if isinstance(layer, NORM_LAYERS)]


def has_sync_bn(model: nn.Layer) -> bool:
    """Return whether a model has a norm whose forward pass waits for other devices."""
    return any(isinstance(layer, nn.SyncBatchNorm) for layer in model.sublayers())


def named_weights(model: nn.Layer) -> dict[str, Tensor]:
    """Return the parameters of a model by their names, without running statistics."""
    return {name: weight for name, weight in model.named_parameters() if not name.endswith(STATISTICS_SUFFIXES)}


def running_statistics(model: nn.Layer) -> list[Tensor]:
    """Return the running means and variances of a model's batch norms, which change in training.

    Those of frozen norms, and of batch norms with `use_global_stats`, do not change. Group norms have none.
    """
    return [statistic for norm in _batch_norms(model) for statistic in (norm._mean, norm._variance)]


def copy_running_statistics(model: nn.Layer) -> Callable[[], None]:
    """Copy the running statistics of a model by one operator. Returns a function that restores them."""
    statistics = running_statistics(model)
    if not statistics:
        return lambda: None
    copies = paddle.concat(statistics)

    def restore() -> None:
        start = 0
        for statistic in statistics:  # through views of the copies: memory may have run out
            paddle.assign(copies[start : start + statistic.size], statistic)
            start += statistic.size

    return restore


def _batch_norms(model: nn.Layer) -> list[nn.Layer]:
    """Return the layers that update running statistics in training."""
    norms = [layer for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D | nn.SyncBatchNorm)]
    return [norm for norm in norms if not norm._use_global_stats]


@contextlib.contextmanager
def frozen_running_statistics(model: nn.Layer) -> Iterator[None]:
    """Keep the running statistics of a model's batch norms unchanged inside the context.

    In training mode the batch norms still normalize by the statistics of their input.
    """
    norms = _batch_norms(model)
    momenta = [norm._momentum for norm in norms]
    try:
        for norm in norms:
            norm._momentum = 1.0  # Paddle's momentum is the weight of the previous statistics
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm._momentum = momentum


class ConvNorm(nn.Layer):
    """Convolution followed by an optional norm. The convolution has a bias only if there is no norm.

    The padding is dilation * (kernel - 1) / 2, which keeps the size at stride 1.

    Args:
        deformable: settings of a deformable convolution, which needs a norm; None for a plain convolution.
        groups: number of groups of a grouped convolution.
        weight_init: initialization of the convolution's weight (see `modeling.initialization`); None: kaiming_normal.
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
        weight_init: ParamAttr | None = None,
    ) -> None:
        super().__init__()
        if deformable is not None:
            self.conv = DeformConv2D(
                in_channels, out_channels, kernel, stride, dilation, deformable, groups, weight_init
            )
        else:
            self.conv = Conv2D(
                in_channels,
                out_channels,
                kernel,
                stride=stride,
                padding=dilation * (kernel - 1) // 2,
                dilation=dilation,
                groups=groups,
                weight_attr=weight_init or kaiming_normal(),
                bias_attr=None if norm == "none" else False,
            )
        self.norm = build_norm(norm, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, ceil(H/stride), ceil(W/stride)]."""
        x = self.conv(x)
        return x if self.norm is None else self.norm(x)
