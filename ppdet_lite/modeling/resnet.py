"""ResNet 18/34/50/101 as a detection backbone."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import paddle.nn.functional as F
from paddle import Tensor, nn
from pydantic import Field

from ppdet_lite.config.registry import register
from ppdet_lite.modeling.components import Backbone
from ppdet_lite.modeling.deform import Deformable
from ppdet_lite.modeling.norm import ConvNorm, NormName, init_kaiming_normal

BLOCKS_PER_STAGE = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
STAGES = (2, 3, 4, 5)


class BasicBlock(nn.Layer):
    """Two 3x3 convolutions and a shortcut: ResNet 18 and 34."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        norm: NormName,
        stride_in_1x1: bool,
        deformable: Deformable | None,
    ) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, width, 3, stride, norm=norm, deformable=deformable)
        self.conv2 = ConvNorm(width, width, 3, norm=norm, deformable=deformable)
        self.shortcut = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, width, H/stride, W/stride]."""
        identity = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + identity)


class Bottleneck(nn.Layer):
    """1x1, 3x3, 1x1 convolutions and a shortcut: ResNet 50 and deeper."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        norm: NormName,
        stride_in_1x1: bool,
        deformable: Deformable | None,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = ConvNorm(in_channels, width, 1, stride if stride_in_1x1 else 1, norm=norm)
        self.conv2 = ConvNorm(width, width, 3, 1 if stride_in_1x1 else stride, norm=norm, deformable=deformable)
        self.conv3 = ConvNorm(width, out_channels, 1, norm=norm)
        self.shortcut = _shortcut(in_channels, out_channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, 4 * width, H/stride, W/stride]."""
        identity = x if self.shortcut is None else self.shortcut(x)
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.conv3(x) + identity)


def _shortcut(in_channels: int, out_channels: int, stride: int, norm: NormName) -> ConvNorm | None:
    if in_channels == out_channels and stride == 1:
        return None
    return ConvNorm(in_channels, out_channels, 1, stride, norm=norm)


@register
class ResNet(Backbone):
    """ResNet (He et al. 2015) that gives the last map of each chosen stage.

    Args:
        norm: of every convolution. `frozen_bn` needs pretrained weights: from random init it normalises nothing.
        frozen_stages: how many stages, counted from the stem, are not trained: 0 none, 1 the stem, 2 the stem and
            stage 2, ... Batch norm in a frozen stage is frozen too.
        out_stages: stages whose outputs are returned, out of 2..5 (strides 4..32).
        stride_in_1x1: downsample in the bottleneck's first 1x1 (the original Caffe models) rather than in its 3x3.
        deformable: makes every 3x3 convolution of the stages it names deformable.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50, 101] = 50,
        norm: NormName = "frozen_bn",
        frozen_stages: Annotated[int, Field(ge=0, le=5)] = 2,
        out_stages: Sequence[Literal[2, 3, 4, 5]] = STAGES,
        stride_in_1x1: bool = False,
        deformable: Deformable | None = None,
    ) -> None:
        super().__init__()
        if norm == "none":
            raise ValueError("a ResNet without norms does not train; choose bn, frozen_bn, gn, ln or in")
        if not out_stages or list(out_stages) != sorted(set(out_stages)):
            raise ValueError(f"out_stages must be ascending stages out of 2..5, got {list(out_stages)}")
        block = BasicBlock if depth < 50 else Bottleneck
        self.norm_name, self.frozen_stages = norm, frozen_stages
        self.out_stages = tuple(out_stages)
        self.stem = ConvNorm(3, 64, 7, stride=2, norm=self._stage_norm(1))
        channels = 64
        for stage, block_count in zip(STAGES[: self.out_stages[-1] - 1], BLOCKS_PER_STAGE[depth]):
            width = 64 * 2 ** (stage - 2)
            in_stage = deformable if deformable is not None and stage in deformable.stages else None
            blocks = []
            for i in range(block_count):
                stride = 2 if i == 0 and stage > 2 else 1
                blocks.append(block(channels, width, stride, self._stage_norm(stage), stride_in_1x1, in_stage))
                channels = width * block.expansion
            setattr(self, f"res{stage}", nn.Sequential(*blocks))
        self.out_channels = [64 * 2 ** (stage - 2) * block.expansion for stage in self.out_stages]
        self.out_strides = [2**stage for stage in self.out_stages]
        for layer in self.sublayers():
            if isinstance(layer, ConvNorm):
                init_kaiming_normal(layer.conv)
        self._freeze()

    def _stage_norm(self, stage: int) -> NormName:
        is_batch_norm = self.norm_name in ("bn", "sync_bn", "frozen_stats_bn")
        return "frozen_bn" if is_batch_norm and stage <= self.frozen_stages else self.norm_name

    def _freeze(self) -> None:
        frozen = [self.stem, *(getattr(self, f"res{s}", None) for s in STAGES)][: self.frozen_stages]
        for stage in frozen:
            for parameter in [] if stage is None else stage.parameters():
                parameter.stop_gradient = True

    def forward(self, images: Tensor) -> list[Tensor]:
        """images [N, 3, H, W] -> features of `out_stages`, fine to coarse."""
        x = F.max_pool2d(F.relu(self.stem(images)), kernel_size=3, stride=2, padding=1)
        features = []
        for stage in range(2, self.out_stages[-1] + 1):
            x = getattr(self, f"res{stage}")(x)
            if stage in self.out_stages:
                features.append(x)
        return features

    @staticmethod
    def upstream_name(name: str) -> str:
        """Our name of a weight in `paddle.vision.models.resnet*` (or torchvision's, which has the same modules)."""
        rules = (
            (r"^conv1\.", "stem.conv."),
            (r"^bn1\.", "stem.norm."),
            (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
            (r"\.downsample\.0\.", ".shortcut.conv."),
            (r"\.downsample\.1\.", ".shortcut.norm."),
            (r"\.conv(\d)\.weight$", r".conv\1.conv.weight"),
            (r"\.bn(\d)\.", r".conv\1.norm."),
            (r"running_mean$", "_mean"),
            (r"running_var$", "_variance"),
        )
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name
