"""The residual blocks of ResNet and ResNeXt, and stages of them: what backbones and the C4 box head are made of."""

import contextlib
import dataclasses
import itertools
from dataclasses import dataclass
from typing import Literal

from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from ppdet_lite.modeling.deform import Deformable
from ppdet_lite.modeling.norm import ConvNorm, NormName, kept_statistics
from ppdet_lite.ops.layers import add_relu, relu

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
Depth = Literal[18, 34, 50, 101, 152]
Variant = Literal["a", "b", "c", "d"]
"""Where a ResNet downsamples (He et al. 2019, "Bag of Tricks", figure 2).

a: a bottleneck in its first 1x1, as the original Caffe models; b: in its 3x3; c: b with a stem of three 3x3;
d ("vd"): c with the shortcut's 1x1 after a 2x2 mean, so that it sees every pixel.
"""


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of a stage have in common; see `ppdet_lite.modeling.resnet.ResNet`."""

    norm: NormName
    variant: Variant = "b"
    groups: int = 1
    base_width: int = 64
    deformable: Deformable | None = None
    dilation: int = 1
    projects: bool = False  # the first block has a projection in its shortcut although shapes stay


class _ResidualBlock(nn.Layer):
    """The shortcut that both kinds of block share."""

    expansion: int

    def add_shortcut(self, in_channels: int, out_channels: int, stride: int, style: BlockStyle) -> None:
        """Make what the block's input passes on its way around; nothing where shapes stay."""
        self.shortcut = self.pool = None
        if in_channels != out_channels or stride > 1 or style.projects:
            pools = style.variant == "d" and stride > 1
            self.pool = nn.AvgPool2D(stride, stride, ceil_mode=True) if pools else None
            self.shortcut = ConvNorm(in_channels, out_channels, 1, 1 if pools else stride, norm=style.norm)

    def identity(self, x: Tensor) -> Tensor:
        """What is added to the block's own answer."""
        x = x if self.pool is None else self.pool(x)
        return x if self.shortcut is None else self.shortcut(x)


class BasicBlock(_ResidualBlock):
    """Two 3x3 convolutions and a shortcut: ResNet 18 and 34."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        if style.groups > 1 or style.base_width != 64:
            raise ValueError("groups and base_width are of bottlenecks: they need depth 50 or more")
        spread = {"dilation": style.dilation, "norm": style.norm, "deformable": style.deformable}
        self.conv1 = ConvNorm(in_channels, planes, 3, stride, **spread)
        self.conv2 = ConvNorm(planes, planes, 3, **spread)
        self.add_shortcut(in_channels, planes, stride, style)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, planes, H/stride, W/stride]."""
        return add_relu(self.conv2(relu(self.conv1(x))), self.identity(x))


class Bottleneck(_ResidualBlock):
    """1x1, 3x3, 1x1 convolutions and a shortcut: ResNet 50 and deeper; with grouped 3x3, ResNeXt (Xie et al. 2017)."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, style: BlockStyle) -> None:
        super().__init__()
        width = planes * style.base_width // 64 * style.groups
        first, second = (stride, 1) if style.variant == "a" else (1, stride)
        self.conv1 = ConvNorm(in_channels, width, 1, first, norm=style.norm)
        self.conv2 = ConvNorm(
            width, width, 3, second, style.dilation, norm=style.norm, deformable=style.deformable, groups=style.groups
        )
        self.conv3 = ConvNorm(width, planes * self.expansion, 1, norm=style.norm)
        self.add_shortcut(in_channels, planes * self.expansion, stride, style)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 4 * planes, H/stride, W/stride]."""
        return add_relu(self.conv3(relu(self.conv2(relu(self.conv1(x))))), self.identity(x))


def stage_channels(depth: Depth, stage: int) -> int:
    """Channels that a stage out of 2..5 gives."""
    return 64 * 2 ** (stage - 2) * _block(depth).expansion


def residual_stage(depth: Depth, stage: int, in_channels: int, stride: int, style: BlockStyle) -> nn.Sequential:
    """The blocks of a stage out of 2..5; the first of them downsamples by the stride."""
    block, planes = _block(depth), 64 * 2 ** (stage - 2)
    blocks = [block(in_channels, planes, stride, style)]
    channels, style = planes * block.expansion, dataclasses.replace(style, projects=False)
    blocks += [block(channels, planes, 1, style) for _ in range(BLOCKS_PER_STAGE[depth][stage - 2] - 1)]
    return nn.Sequential(*blocks)


def checkpointed(block: nn.Layer, x: Tensor) -> Tensor:
    """A block's output, of which nothing but x is kept for the backward pass: there it is computed again.

    Gradient checkpointing (Chen et al. 2016). Running statistics of norms take in x once. A block whose input has no
    gradient, as the first one after frozen stages, is run once: Paddle's recompute does without such.
    """
    if x.stop_gradient:
        return block(x)

    runs = itertools.count()

    def run(x: Tensor) -> Tensor:
        with contextlib.nullcontext() if next(runs) == 0 else kept_statistics(block):
            return block(x)

    # "reentrant", Paddle's other way, adds gradients up in another order, and goes with no DataParallel
    return recompute(run, x, use_reentrant=False, preserve_rng_state=False)


def _block(depth: Depth) -> type[_ResidualBlock]:
    return BasicBlock if depth < 50 else Bottleneck
