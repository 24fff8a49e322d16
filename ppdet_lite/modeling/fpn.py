"""Feature pyramid network."""

import itertools
from collections.abc import Sequence

import paddle.nn.functional as F
from paddle import Tensor, nn
from pydantic import PositiveInt

from ppdet_lite.config.registry import Derived, register
from ppdet_lite.modeling.components import Neck
from ppdet_lite.modeling.initialization import xavier_fill
from ppdet_lite.modeling.norm import ConvNorm, NormName
from ppdet_lite.ops.layers import upsample_twice


@register
class FPN(Neck):
    """Top-down pyramid over the backbone's features plus one coarser level (Lin et al. 2017, section 3).

    Args:
        norm: after each lateral and output convolution; none in the paper, `gn` in Group Normalization's detectors.
        extra_level: a stride-64 level, the coarsest map subsampled by 2, for the RPN's largest anchors.
    """

    def __init__(
        self,
        in_channels: Derived[Sequence[int]],
        in_strides: Derived[Sequence[int]],
        out_channels: PositiveInt = 256,
        norm: NormName = "none",
        extra_level: bool = True,
    ) -> None:
        super().__init__()
        if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(in_strides)):
            raise ValueError(f"FPN needs features at consecutive strides, got {list(in_strides)}")
        self.out_channels = out_channels
        self.extra_level = extra_level
        self.out_strides = [*in_strides, in_strides[-1] * 2] if extra_level else list(in_strides)
        self.size_divisor = in_strides[-1]
        begin = {"norm": norm, "weights": xavier_fill()}
        self.lateral = nn.LayerList([ConvNorm(channels, out_channels, 1, **begin) for channels in in_channels])
        self.output = nn.LayerList([ConvNorm(out_channels, out_channels, 3, **begin) for _ in in_channels])

    def forward(self, features: Sequence[Tensor], finest: int = 0) -> list[Tensor]:
        """Features [N, C_l, H_l, W_l], each twice as fine as the next -> levels of `out_channels` channels.

        finest: the first level returned; no work is done for those before it.
        """
        merged = self.lateral[-1](features[-1])
        levels = [self.output[-1](merged)]
        for i in reversed(range(finest, len(features) - 1)):
            merged = self.lateral[i](features[i]) + upsample_twice(merged)
            levels.insert(0, self.output[i](merged))
        if self.extra_level:
            levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return levels[-(len(self.out_strides) - finest) :]
