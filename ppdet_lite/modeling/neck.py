"""Detectors without a pyramid: C4, where the RPN and the RoIs read one map, and DC5, where RoIs read a reduced one."""

from collections.abc import Sequence

import paddle.nn.functional as F
from paddle import Tensor
from pydantic import PositiveInt

from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import Misfit
from ppdet_lite.modeling.components import Neck
from ppdet_lite.modeling.initialization import normal
from ppdet_lite.modeling.norm import ConvNorm, NormName


class NoNeck(Neck):
    """What `neck: null` stands for: RPN and RoIs read the backbone's one map as it is (He et al. 2015, "C4")."""

    def __init__(self, in_channels: Sequence[int], in_strides: Sequence[int]) -> None:
        super().__init__()
        if len(in_channels) != 1:
            raise Misfit(
                "backbone.out_stages", f"has {len(in_channels)} stages; without a neck give one, such as [4], or a neck"
            )
        self.out_channels, self.out_strides = in_channels[0], list(in_strides)

    def forward(self, features: Sequence[Tensor], finest: int = 0) -> list[Tensor]:
        """The features."""
        return list(features)


@register
class Reduction(Neck):
    """A 1x1 convolution and a ReLU over the backbone's last map, for the RoIs; the RPN reads the first as it is.

    With a dilated backbone of stages [4, 5] that is Deformable ConvNets' detector (Dai et al. 2017, section 4: 256
    channels, RPN on stage 4).

    Args:
        norm: after the convolution; none in the paper.
    """

    def __init__(
        self,
        in_channels: Derived[Sequence[int]],
        in_strides: Derived[Sequence[int]],
        out_channels: PositiveInt = 256,
        norm: NormName = "none",
    ) -> None:
        super().__init__()
        self.out_channels, self.out_strides = out_channels, [in_strides[-1]]
        self._first = in_channels[0], in_strides[0]
        self.reduce = ConvNorm(in_channels[-1], out_channels, 1, norm=norm, weights=normal(0.01))

    @property
    def rpn_channels(self) -> int:
        """Channels of the backbone's first map."""
        return self._first[0]

    @property
    def rpn_strides(self) -> Sequence[int]:
        """The stride of the backbone's first map."""
        return [self._first[1]]

    def rpn_features(self, features: Sequence[Tensor], levels: list[Tensor]) -> list[Tensor]:
        """The backbone's first map."""
        return [features[0]]

    def forward(self, features: Sequence[Tensor], finest: int = 0) -> list[Tensor]:
        """Features [N, C_l, H_l, W_l] -> the last of them with `out_channels` channels."""
        return [F.relu(self.reduce(features[-1]))]
