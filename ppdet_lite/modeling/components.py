"""Base classes of the detector's components: the interfaces between backbone, neck, RoI pooling and box head.

A config selects a component by the name of a registered subclass. Constructor arguments marked `Derived` (channels,
strides, number of classes) depend on other components: `FasterRCNN.from_config` passes them; a config cannot set them.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from paddle import Tensor, nn

from ppdet_lite.structures import Rois


class Backbone(nn.Layer):
    """images [N, 3, H, W] -> list of features [N, C_l, H/s_l, W/s_l], fine to coarse."""

    out_channels: Sequence[int]  # C_l of each level
    out_strides: Sequence[int]  # s_l of each level
    frozen_stages: int = 0  # number of stages that are not trained

    @staticmethod
    def upstream_name(name: str) -> str:
        """Return this backbone's name for the weight `name` in the file of a pretrained image classifier."""
        return name


class Neck(nn.Layer, ABC):
    """Backbone features -> the levels from which RoIs are pooled, fine to coarse, all with `out_channels` channels.

    The levels are also the input of the RPN, unless a subclass overrides the `rpn_*` methods.
    """

    out_channels: int
    out_strides: Sequence[int]
    size_divisor: int = 1  # height and width of the padded images must be multiples of it

    @property
    def rpn_channels(self) -> int:
        """Channels of the RPN's input."""
        return self.out_channels

    @property
    def rpn_strides(self) -> Sequence[int]:
        """Strides of the RPN's input."""
        return self.out_strides

    def rpn_features(self, features: Sequence[Tensor], levels: list[Tensor]) -> list[Tensor]:
        """Return the RPN's input, given the backbone's features and `levels`, the output of `forward` for them."""
        return levels

    @abstractmethod
    def forward(self, features: Sequence[Tensor], finest: int = 0) -> list[Tensor]:
        """Return the levels from index `finest` on; finer ones are not computed."""


class RoIPool(nn.Layer, ABC):
    """(features, Rois) -> [R, C, P, P], P = `output_size`."""

    output_size: int
    out_channels: int | None = None  # C; None if it is that of the features

    @abstractmethod
    def level(self, boxes: Tensor) -> Tensor:
        """Return the pyramid level, 0 = finest, from which each box is pooled: [R, 4] -> [R] int64."""

    @abstractmethod
    def level_of_square(self, side: float) -> int:
        """Return the level of a square box with this side in pixels, computed on the host."""

    @abstractmethod
    def forward(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        """Pool every RoI from the level that `level` assigns to it.

        finest: index of the first level contained in `features`. The levels of all RoIs must be in `features`.
        """


class BoxHead(nn.Layer):
    """Pooled features [R, C, P, P] -> embedding [R, E], E = `out_features`."""

    out_features: int
