"""The slots of a detector: what each kind of part promises to the others.

A config fills a slot by naming a registered subclass. What a part learns from another (channels, strides, the number of
classes) is an argument marked `Derived`: the assembly passes it, a config cannot set it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from paddle import Tensor, nn

from ppdet_lite.structures import Rois


class Backbone(nn.Layer):
    """images [N, 3, H, W] -> list of features [N, C_l, H/s_l, W/s_l], fine to coarse."""

    out_channels: Sequence[int]
    out_strides: Sequence[int]
    frozen_stages: int = 0

    @staticmethod
    def upstream_name(name: str) -> str:
        """Our name of a weight that a pretrained classifier's file calls `name`."""
        return name


class Neck(nn.Layer, ABC):
    """The backbone's features -> features of one width, fine to coarse, that RoIs are pooled from.

    The RPN reads the same, unless `rpn_features` says otherwise.
    """

    out_channels: int
    out_strides: Sequence[int]
    size_divisor: int = 1  # image height and width must be multiples of this

    @property
    def rpn_channels(self) -> int:
        """Channels of what the RPN reads."""
        return self.out_channels

    @property
    def rpn_strides(self) -> Sequence[int]:
        """Strides of what the RPN reads."""
        return self.out_strides

    def rpn_features(self, features: Sequence[Tensor], levels: list[Tensor]) -> list[Tensor]:
        """What the RPN reads, given the backbone's features and what `forward` made of them."""
        return levels

    @abstractmethod
    def forward(self, features: Sequence[Tensor], finest: int = 0) -> list[Tensor]:
        """The levels from number `finest` on; finer ones are not computed."""


class RoIPool(nn.Layer, ABC):
    """(features, Rois) -> [R, C, P, P], P = `output_size`."""

    output_size: int
    out_channels: int | None = None  # C; None where it is that of the features

    @abstractmethod
    def level(self, boxes: Tensor) -> Tensor:
        """Which pyramid level, 0 the finest, suits the size of each box: [R, 4] -> [R] int64."""

    @abstractmethod
    def level_of_square(self, side: float) -> int:
        """The level of a square box of this side in pixels, without asking the device."""

    @abstractmethod
    def forward(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        """Pool every RoI from the level that suits it; `features` start at level `finest`, no RoI needs a finer one.

        Nor may one need a level coarser than the features that are given.
        """


class BoxHead(nn.Layer):
    """Pooled features [R, C, P, P] -> embedding [R, D], D = `out_features`."""

    out_features: int
