"""ResNet 18 to 152 and ResNeXt as a detection backbone."""

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import paddle
from paddle import Tensor, nn
from pydantic import Field

from ppdet_lite.config.constrained_types import Channels, PositiveFloat
from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.components import Backbone
from ppdet_lite.modeling.deform import Deformable
from ppdet_lite.modeling.norm import ConvNorm, NormName
from ppdet_lite.modeling.residual import (
    BlockStyle,
    Depth,
    Variant,
    checkpointed,
    residual_stage,
    stage_channels,
)
from ppdet_lite.ops.layers import max_pool, relu

STAGES = (2, 3, 4, 5)


class DeepStem(nn.Layer):
    """Three 3x3 convolutions, the first with stride 2, instead of one 7x7 ("Bag of Tricks", figure 2b)."""

    def __init__(self, channels: int, norm: NormName) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, channels // 2, 3, stride=2, norm=norm)
        self.conv2 = ConvNorm(channels // 2, channels // 2, 3, norm=norm)
        self.conv3 = ConvNorm(channels // 2, channels, 3, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, channels, H/2, W/2]."""
        return self.conv3(relu(self.conv2(relu(self.conv1(images)))))


@register
class ResNet(Backbone):
    """ResNet (He et al. 2015) or ResNeXt (Xie et al. 2017); returns the outputs of selected stages.

    Args:
        norm: after every convolution. `frozen_bn` needs pretrained weights: randomly initialized, it normalizes
            nothing.
        frozen_stages: number of stages, counted from the stem, that are not trained: 0 none, 1 the stem, 2 the stem and
            stage 2, ... Batch norms of frozen stages are frozen too.
        out_stages: stages whose outputs are returned, out of 2..5 (strides 4..32). Later stages are not built.
        variant: where it downsamples: `a` in a bottleneck's first 1x1 (the original Caffe models), `b` in its 3x3, `c`
            like b with a stem of three 3x3, `d` ("vd") like c with average pooling before the shortcut's 1x1.
        groups, base_width: of a bottleneck's 3x3, which has groups * base_width channels in stage 2. ResNeXt 64x4d:
            64 and 4.
        dilated: stage 5 keeps the stride 16 of stage 4, and its 3x3 convolutions have dilation 2 (DC5).
        project_stage_2: in ResNet 18 and 34, start stage 2 with a projection shortcut too, as PaddleDetection does.
        stage_lr: learning rates of stages 2 to 5, relative to the rest of the model.
        deformable: settings of deformable 3x3 convolutions, with the stages that have them; null for none.
        recompute: gradient checkpointing: training keeps only the inputs of blocks and computes the rest again in the
            backward pass, which takes a third more time and much less memory (docs/gpu.md).
    """

    def __init__(
        self,
        depth: Depth = 50,
        norm: NormName = "frozen_bn",
        frozen_stages: Annotated[int, Field(ge=0, le=5)] = 2,
        out_stages: Sequence[Literal[2, 3, 4, 5]] = STAGES,
        variant: Variant = "b",
        groups: Channels = 1,
        base_width: Channels = 64,
        dilated: bool = False,
        project_stage_2: bool = False,
        stage_lr: Annotated[Sequence[PositiveFloat], Field(min_length=4, max_length=4)] = (1.0, 1.0, 1.0, 1.0),
        deformable: Deformable | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if norm == "none":
            reason = "a ResNet without norms cannot be trained; choose bn, frozen_bn, gn, ln or in"
            raise IncompatibleArguments("norm", reason)
        if not out_stages or list(out_stages) != sorted(set(out_stages)):
            reason = f"expected ascending stages out of 2..5, got {list(out_stages)}"
            raise IncompatibleArguments("out_stages", reason)
        if dilated and out_stages[-1] != 5:
            reason = f"applies to stage 5, which is not in out_stages {list(out_stages)}; set it to false or add 5"
            raise IncompatibleArguments("dilated", reason)
        built = f"stages 2 to {out_stages[-1]}, since out_stages is {list(out_stages)}"
        if frozen_stages > out_stages[-1]:
            reason = f"{frozen_stages} includes stages that are not built ({built}); set it to {out_stages[-1]} or less"
            raise IncompatibleArguments("frozen_stages", reason)
        if any(rate != 1 for rate in stage_lr[out_stages[-1] - 1 :]):
            reason = f"has rates of stages that are not built ({built}); set them to 1"
            raise IncompatibleArguments("stage_lr", reason)
        missing = [] if deformable is None else sorted(set(deformable.stages) - set(range(2, out_stages[-1] + 1)))
        if missing:
            reason = f"stages {missing} are not built, since out_stages is {list(out_stages)}; remove them"
            raise IncompatibleArguments("deformable.stages", reason)
        self.norm_name, self.frozen_stages = norm, frozen_stages
        self.out_stages, self.recompute = tuple(out_stages), recompute
        stem_norm = self._stage_norm(1)
        self.stem = DeepStem(64, stem_norm) if variant in ("c", "d") else ConvNorm(3, 64, 7, stride=2, norm=stem_norm)
        channels, stride, strides = 64, 4, {}
        for stage in STAGES[: self.out_stages[-1] - 1]:
            deform = deformable if deformable is not None and stage in deformable.stages else None
            dilation = 2 if dilated and stage == 5 else 1
            project = project_stage_2 and stage == 2
            style = BlockStyle(self._stage_norm(stage), variant, groups, base_width, deform, dilation, project)
            stage_stride = 1 if stage == 2 or dilation > 1 else 2
            setattr(self, f"res{stage}", residual_stage(depth, stage, channels, stage_stride, style))
            channels, stride = stage_channels(depth, stage), stride * stage_stride
            strides[stage] = stride
        self.out_channels = [stage_channels(depth, stage) for stage in self.out_stages]
        self.out_strides = [strides[stage] for stage in self.out_stages]
        self._freeze()
        self._scale_learning_rates(stage_lr)

    def _stage_norm(self, stage: int) -> NormName:
        is_batch_norm = self.norm_name in ("bn", "sync_bn", "frozen_stats_bn")
        return "frozen_bn" if is_batch_norm and stage <= self.frozen_stages else self.norm_name

    def _freeze(self) -> None:
        frozen = [self.stem, *(getattr(self, f"res{s}", None) for s in STAGES)][: self.frozen_stages]
        for stage in frozen:
            for parameter in [] if stage is None else stage.parameters():
                parameter.stop_gradient = True

    def _scale_learning_rates(self, stage_lr: Sequence[float]) -> None:
        for stage, factor in zip(STAGES[: self.out_stages[-1] - 1], stage_lr):
            for parameter in getattr(self, f"res{stage}").parameters():
                parameter.optimize_attr["learning_rate"] *= factor

    def forward(self, images: Tensor) -> list[Tensor]:
        """images [N, 3, H, W] -> features of `out_stages`, fine to coarse."""
        x = max_pool(relu(self.stem(images)))
        features, checkpoint = [], self.recompute and self.training and paddle.is_grad_enabled()
        for stage in range(2, self.out_stages[-1] + 1):
            for block in getattr(self, f"res{stage}"):
                x = checkpointed(block, x) if checkpoint else block(x)
            if stage in self.out_stages:
                features.append(x)
        return features

    @staticmethod
    def upstream_name(name: str) -> str:
        """Return this backbone's name for a weight of `paddle.vision.models.resnet*` or torchvision's ResNets."""
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
