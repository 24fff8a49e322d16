"""Residual blocks of ResNet and ResNeXt, and the stages that the backbone and the C4 box head consist of."""

import contextlib
import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.deform import Deformable
from ppdet_lite.modeling.norm import ConvNorm, NormName, frozen_running_statistics
from ppdet_lite.ops.layers import add_relu, relu

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
Depth = Literal[18, 34, 50, 101, 152]
Variant = Literal["a", "b", "c", "d"]
"""Where a ResNet downsamples (He et al. 2019, "Bag of Tricks", figure 2).

a: in a bottleneck's first 1x1 convolution (the original Caffe models); b: in its 3x3; c: as b, with a stem of three
3x3; d ("vd"): as c, with 2x2 average pooling before the shortcut's 1x1 convolution, which would skip pixels otherwise.
"""


@dataclass(frozen=True)
class BlockStyle:
    """Options shared by the blocks of a stage; see `ppdet_lite.modeling.resnet.ResNet`."""

    norm: NormName
    variant: Variant = "b"
    groups: int = 1
    base_width: int = 64
    deformable: Deformable | None = None
    dilation: int = 1
    project_first: bool = False  # the first block has a projection shortcut even if the shape does not change


class _ResidualBlock(nn.Layer):
    """Base class of both kinds of block: the shortcut."""

    expansion: int

    def add_shortcut(self, in_channels: int, out_channels: int, stride: int, style: BlockStyle) -> None:
        """Create the layers of the shortcut; none if the shape does not change."""
        self.shortcut = self.pool = None
        if in_channels != out_channels or stride > 1 or style.project_first:
            pools = style.variant == "d" and stride > 1
            self.pool = nn.AvgPool2D(stride, stride, ceil_mode=True) if pools else None
            self.shortcut = ConvNorm(in_channels, out_channels, 1, 1 if pools else stride, norm=style.norm)

    def identity(self, x: Tensor) -> Tensor:
        """Return the shortcut's output, which is added to that of the convolutions."""
        x = x if self.pool is None else self.pool(x)
        return x if self.shortcut is None else self.shortcut(x)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions and a shortcut: ResNet 18 and 34."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        if style.groups > 1 or style.base_width != 64:
            reason = "applies to bottleneck blocks only: choose depth 50 or more, or groups 1 and base_width 64"
            raise IncompatibleArguments("groups" if style.groups > 1 else "base_width", reason)
        options = {"dilation": style.dilation, "norm": style.norm, "deformable": style.deformable}
        self.conv1 = ConvNorm(in_channels, planes, 3, stride, **options)
        self.conv2 = ConvNorm(planes, planes, 3, **options)
        self.add_shortcut(in_channels, planes, stride, style)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, planes, H/stride, W/stride]."""
        return add_relu(self.conv2(relu(self.conv1(x))), self.identity(x))


class Bottleneck(_ResidualBlock):
    """1x1, 3x3, 1x1 convolutions and a shortcut: ResNet 50 and deeper, or ResNeXt with a grouped 3x3 convolution."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        width = planes * style.base_width // 64 * style.groups
        stride1, stride2 = (stride, 1) if style.variant == "a" else (1, stride)
        self.conv1 = ConvNorm(in_channels, width, 1, stride1, norm=style.norm)
        self.conv2 = ConvNorm(
            width, width, 3, stride2, style.dilation, norm=style.norm, deformable=style.deformable, groups=style.groups
        )
        self.conv3 = ConvNorm(width, planes * self.expansion, 1, norm=style.norm)
        self.add_shortcut(in_channels, planes * self.expansion, stride, style)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 4 * planes, H/stride, W/stride]."""
        return add_relu(self.conv3(relu(self.conv2(relu(self.conv1(x))))), self.identity(x))


def stage_channels(depth: Depth, stage: int) -> int:
    """Return the number of output channels of a stage out of 2..5."""
    return 64 * 2 ** (stage - 2) * _block(depth).expansion


def residual_stage(depth: Depth, stage: int, in_channels: int, stride: int, style: BlockStyle) -> nn.Sequential:
    """Build the blocks of a stage out of 2..5; the first of them downsamples by `stride`."""
    block, planes = _block(depth), 64 * 2 ** (stage - 2)
    blocks = [block(in_channels, planes, stride, style)]
    channels, style = planes * block.expansion, dataclasses.replace(style, project_first=False)
    blocks += [block(channels, planes, 1, style) for _ in range(BLOCKS_PER_STAGE[depth][stage - 2] - 1)]
    return nn.Sequential(*blocks)


def checkpointed(block: nn.Layer, x: Tensor) -> Tensor:
    """Run a block with gradient checkpointing: only x is kept, and the backward pass runs the block again.

    Source: Chen et al. 2016. Running statistics are updated in the first run only. If x needs no gradient, as after
    frozen stages, the block runs normally; Paddle's recompute would do the same and log a warning.
    """
    if x.stop_gradient:
        return block(x)

    runs = itertools.count()

    def run(x: Tensor) -> Tensor:
        with contextlib.nullcontext() if next(runs) == 0 else frozen_running_statistics(block):
            return block(x)

    # use_reentrant=True would add up gradients in another order and does not work with DataParallel
    return recompute(run, x, use_reentrant=False, preserve_rng_state=False)


def _block(depth: Depth) -> type[_ResidualBlock]:
    return BasicBlock if depth < 50 else Bottleneck
