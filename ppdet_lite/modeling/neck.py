"""Necks of detectors without a pyramid: C4, with one map for RPN and RoIs, and DC5, with a reduced map for the RoIs."""

from collections.abc import Sequence

import paddle.nn.functional as F
from paddle import Tensor

from ppdet_lite.config.constrained_types import Channels
from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.components import Neck
from ppdet_lite.modeling.initialization import normal
from ppdet_lite.modeling.norm import ConvNorm, NormName


class NoNeck(Neck):
    """The neck of `neck: null`: RPN and RoIs use the single feature map of the backbone (He et al. 2015, "C4")."""

    def __init__(self, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        if len(in_channels) != 1:
            raise IncompatibleArguments(
                "backbone.out_stages",
                f"has {len(in_channels)} stages; a detector without a neck needs exactly one, such as [4]",
            )
        self.out_channels, self.out_strides = in_channels[0], list(in_strides)

    def forward(self, features: Sequence[Tensor], finest: int = 0) -> list[Tensor]:
        """Return the features unchanged."""
        return list(features)


@register
class Reduction(Neck):
    """A 1x1 convolution and a ReLU on the backbone's last map, for the RoIs; the RPN uses the first map unchanged.

    With a dilated backbone and out_stages [4, 5] this is the detector of Deformable ConvNets (Dai et al. 2017, section
    4: 256 channels, RPN on stage 4).

    Args:
        norm: after the convolution; the paper has none.
    """

    def __init__(
        self,
        in_channels: Derived[Sequence[int]],
        in_strides: Derived[Sequence[int]],
        out_channels: Channels = 256,
        norm: NormName = "none",
    ) -> None:
        super().__init__()
        self.out_channels, self.out_strides = out_channels, [in_strides[-1]]
        self._rpn_channels, self._rpn_stride = in_channels[0], in_strides[0]
        self.reduce = ConvNorm(in_channels[-1], out_channels, 1, norm=norm, weight_init=normal(0.01))

    @property
    def rpn_channels(self) -> int:
        """Channels of the backbone's first map."""
        return self._rpn_channels

    @property
    def rpn_strides(self) -> Sequence[int]:
        """The stride of the backbone's first map."""
        return [self._rpn_stride]

    def rpn_features(self, features: Sequence[Tensor], levels: list[Tensor]) -> list[Tensor]:
        """Return the backbone's first map."""
        return [features[0]]

    def forward(self, features: Sequence[Tensor], finest: int = 0) -> list[Tensor]:
        """Features [N, C_l, H_l, W_l] -> the last map, reduced to `out_channels` channels."""
        return [F.relu(self.reduce(features[-1]))]
