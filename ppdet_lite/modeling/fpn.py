"""Feature pyramid network."""

import itertools
from collections.abc import Sequence

import paddle.nn.functional as F
from paddle import Tensor, nn

from ppdet_lite.config.constrained_types import Channels
from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.components import Neck
from ppdet_lite.modeling.initialization import xavier_fill
from ppdet_lite.modeling.norm import ConvNorm, NormName
from ppdet_lite.ops.layers import upsample_twice


@register
class FPN(Neck):
    """Top-down feature pyramid, and a coarser level for the RPN (Lin et al. 2017, section 3).

    Args:
        norm: after each lateral and output convolution; the paper has none, Group Normalization's detectors have `gn`.
        extra_level: add the coarsest map subsampled by 2, usually of stride 64, for the RPN's largest anchors.
    """

    def __init__(
        self,
        in_channels: Derived[Sequence[int]],
        in_strides: Derived[Sequence[int]],
        out_channels: Channels = 256,
        norm: NormName = "none",
        extra_level: bool = True,
    ) -> None:
        super().__init__()
        if any(coarse != 2 * fine for fine, coarse in itertools.pairwise(in_strides)):
            raise IncompatibleArguments(
                "type",
                f"FPN needs each stride to be twice the one before, not {list(in_strides)}: choose consecutive "
                "backbone.out_stages, and dilated: false",
            )
        self.out_channels = out_channels
        self.extra_level = extra_level
        self.out_strides = [*in_strides, in_strides[-1] * 2] if extra_level else list(in_strides)
        self.size_divisor = in_strides[-1]
        options = {"norm": norm, "weight_init": xavier_fill()}
        self.lateral = nn.LayerList([ConvNorm(channels, out_channels, 1, **options) for channels in in_channels])
        self.output = nn.LayerList([ConvNorm(out_channels, out_channels, 3, **options) for _ in in_channels])

    def forward(self, features: Sequence[Tensor], finest: int = 0) -> list[Tensor]:
        """Features [N, C_l, H_l, W_l] -> levels [N, out_channels, H_l, W_l], fine to coarse.

        finest: index of the first level to return; finer levels are not computed.
        """
        merged = self.lateral[-1](features[-1])
        levels = [self.output[-1](merged)]
        for i in reversed(range(finest, len(features) - 1)):
            merged = self.lateral[i](features[i]) + upsample_twice(merged)
            levels.insert(0, self.output[i](merged))
        if self.extra_level:
            levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return levels[-(len(self.out_strides) - finest) :]  # without the last map's level if `finest` is the extra one
