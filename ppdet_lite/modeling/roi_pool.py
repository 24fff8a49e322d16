"""RoI pooling: RoIAlign, deformable pooling with its offset branch, and the position-sensitive deformable one."""

from collections.abc import Sequence
from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import Misfit
from ppdet_lite.modeling.components import RoIPool
from ppdet_lite.modeling.convolution import Conv2D
from ppdet_lite.modeling.initialization import normal, zeros
from ppdet_lite.ops.deform_roi_pool import SampleGroups, deform_roi_pool, sample_groups
from ppdet_lite.ops.roi_align import pyramid_roi_align
from ppdet_lite.ops.roi_levels import pyramid_level, square_level
from ppdet_lite.structures import Rois


class _PyramidPool(RoIPool):
    """What the poolings share: which level of a pyramid a RoI is pooled from."""

    def __init__(
        self, in_strides: Sequence[int], output_size: int, levels: int, canonical_size: float, canonical_stride: int
    ) -> None:
        super().__init__()
        self.output_size, self.canonical_size = output_size, canonical_size
        self.strides = list(in_strides)[:levels]
        if len(self.strides) < levels:
            raise ValueError(f"levels is {levels}, but the neck has strides {list(in_strides)} only")
        if canonical_stride not in self.strides:
            raise ValueError(f"canonical_stride is {canonical_stride}, but RoIs are pooled at strides {self.strides}")
        self.canonical_level = self.strides.index(canonical_stride)

    def level(self, boxes: Tensor) -> Tensor:
        """Which of the levels, 0 the finest, each box [R, 4] is pooled from: [R] int64."""
        return pyramid_level(boxes, len(self.strides), self.canonical_size, self.canonical_level)

    def level_of_square(self, side: float) -> int:
        """The level of a square box of this side in pixels, without asking the device."""
        return square_level(side, len(self.strides), self.canonical_size, self.canonical_level)

    def _maps(self, features: Sequence[Tensor], finest: int) -> tuple[Sequence[Tensor], list[int]]:
        """Which of the features, that begin with level `finest`, are pooled from, and their strides."""
        strides = self.strides[finest:][: len(features)]
        return features[: len(strides)], strides


@register
class RoIAlign(_PyramidPool):
    """RoIAlign from the pyramid level that suits each RoI's size.

    Args:
        sampling_ratio: samples per bin and axis; 0 adapts to the RoI (detectron2, mmdetection, PaddleDetection), 2 is
            torchvision's.
        aligned: half-pixel correct (detectron2, mmdetection) or not (torchvision, PaddleDetection).
        levels: how many of the finest levels are pooled from; FPN's fifth serves the RPN alone.
        canonical_size, canonical_stride: a RoI of this side, in pixels, is pooled from the level of this stride; half
            the side, one level finer.
    """

    def __init__(
        self,
        in_strides: Derived[Sequence[int]],
        output_size: PositiveInt = 7,
        sampling_ratio: NonNegativeInt = 0,
        aligned: bool = True,
        levels: PositiveInt = 4,
        canonical_size: PositiveFloat = 224.0,
        canonical_stride: PositiveInt = 16,
    ) -> None:
        super().__init__(in_strides, output_size, levels, canonical_size, canonical_stride)
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        """Features [N, C, H_l, W_l] from level `finest` on and R RoIs, none of a finer level -> [R, C, P, P]."""
        features, strides = self._maps(features, finest)
        level = self.level(rois.boxes) - finest
        settings = (self.output_size, self.sampling_ratio, self.aligned)
        return pyramid_roi_align(features, strides, rois, level, *settings, training=self.training)


@register
class DeformRoIPool(_PyramidPool):
    """Deformable RoI pooling: each bin is moved by a learned offset and, when modulated, scaled by a learned mask.

    RoIs are pooled without offsets, fully connected layers turn that into the offsets (in units of gamma times the
    RoI's size) and masks of their bins, and the RoIs are pooled again (Dai et al. 2017, section 2.2; Zhu et al. 2019,
    section 3.2). The last layer of each branch starts at zero.

    Args:
        modulated: version 2, with a mask: a sigmoid that multiplies each bin, 0.5 at the start.
        branch: `paper`: version 1 has one layer, version 2 two hidden ones shared by offsets and mask; `mmcv`: two
            hidden layers for the offsets and, when modulated, one for the mask apart.
        hidden: width of the hidden layers.
        offset_lr: learning rate of the branch relative to the others; version 1's paper has 0.01, version 2's and mmcv
            1. Offsets that learn too fast wander off, and nothing brings them back.
        per_level: a branch of its own for each level, as in mmdetection, rather than one for all.
        sampling_ratio, levels, canonical_size, canonical_stride: see `RoIAlign`.
    """

    def __init__(
        self,
        in_strides: Derived[Sequence[int]],
        in_channels: Derived[int],
        modulated: bool = False,
        branch: Literal["paper", "mmcv"] = "paper",
        hidden: PositiveInt = 1024,
        offset_lr: PositiveFloat = 0.1,
        gamma: PositiveFloat = 0.1,
        output_size: PositiveInt = 7,
        sampling_ratio: NonNegativeInt = 0,
        levels: PositiveInt = 4,
        canonical_size: PositiveFloat = 224.0,
        canonical_stride: PositiveInt = 16,
        per_level: bool = False,
    ) -> None:
        super().__init__(in_strides, output_size, levels, canonical_size, canonical_stride)
        self.sampling_ratio, self.gamma, self.modulated = sampling_ratio, gamma, modulated
        settings = (in_channels * output_size**2, output_size**2, modulated, branch, hidden, offset_lr)
        self.branches = self.offset = self.mask = None
        if per_level:
            self.branches = nn.LayerList([_Branch(*settings) for _ in range(levels)])
        else:
            own = _Branch(*settings)
            self.offset, self.mask = own.offset, own.mask

    def forward(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        """Features [N, C, H_l, W_l] from level `finest` on and R RoIs, none of a finer level -> [R, C, P, P]."""
        groups = self._groups(features, rois, finest)
        offset, mask = self._offsets(features, rois, finest, groups)
        return self._pool(features, rois, finest, groups, offset, mask)

    def offsets(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> tuple[Tensor, Tensor | None]:
        """Offsets [R, 2, P, P], x first, in units of gamma times the RoI's size, and the mask [R, 1, P, P] or None."""
        return self._offsets(features, rois, finest, self._groups(features, rois, finest))

    def _offsets(
        self, features: Sequence[Tensor], rois: Rois, finest: int, groups: SampleGroups | None
    ) -> tuple[Tensor, Tensor | None]:
        plain = self._pool(features, rois, finest, groups).flatten(1)
        size, bins = self.output_size, self.output_size**2
        if self.branches is None:
            answer = _answer(self.offset, self.mask, plain)
        else:
            answer = self._answer_by_level(plain, self.level(rois.boxes))
        offset = answer[:, : 2 * bins].reshape([-1, 2, size, size])
        if not self.modulated:
            return offset, None
        return offset, F.sigmoid(answer[:, 2 * bins :]).reshape([-1, 1, size, size])

    def _answer_by_level(self, plain: Tensor, level: Tensor) -> Tensor:
        """What the branch of each RoI's level says. All say something of all: RoIs of a level may be none."""
        answer = 0
        for i, branch in enumerate(self.branches):
            of_level = (level == i).astype(plain.dtype).unsqueeze(1)
            answer = answer + of_level * _answer(branch.offset, branch.mask, plain)
        return answer

    def _groups(self, features: Sequence[Tensor], rois: Rois, finest: int) -> SampleGroups | None:
        """What both poolings need to know of the RoIs, read once; nothing in a graph being exported."""
        if not paddle.in_dynamic_mode():
            return None
        scales = [1.0 / stride for stride in self._maps(features, finest)[1]]
        level = self.level(rois.boxes) - finest
        return sample_groups(rois.boxes, level, self.output_size, scales, self.sampling_ratio)

    def _pool(
        self,
        features: Sequence[Tensor],
        rois: Rois,
        finest: int,
        groups: SampleGroups | None,
        offset: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        features, strides = self._maps(features, finest)
        return deform_roi_pool(
            features,
            rois.boxes,
            rois.counts,
            self.output_size,
            [1.0 / stride for stride in strides],
            self.sampling_ratio,
            self.gamma,
            offset,
            mask,
            level=self.level(rois.boxes) - finest,
            groups=groups,
        )


@register
class DeformPSRoIPool(RoIPool):
    """Position-sensitive deformable RoI pooling (Dai et al. 2017, section 2.2 and figure 4), from one map.

    As in R-FCN, a 1x1 convolution gives a map of its own for each part of a RoI: bin (i, j) is pooled from the maps of
    its part. A second one, which starts at zero, gives fields that the same pooling turns into the offsets of the bins.
    Semantics are those of the authors' operator ("legacy" in `deform_roi_pool`).

    Args:
        out_channels: of the pooled features; the maps are group_size^2 times as many.
        group_size: parts that a RoI has along each axis; the paper has as many as bins.
        offset_lr: learning rate of the fields relative to the others.
        sample_per_part: samples per bin and axis.
    """

    def __init__(
        self,
        in_strides: Derived[Sequence[int]],
        in_channels: Derived[int],
        out_channels: PositiveInt = 32,
        group_size: PositiveInt = 7,
        output_size: PositiveInt = 7,
        gamma: PositiveFloat = 0.1,
        offset_lr: PositiveFloat = 0.1,
        sample_per_part: PositiveInt = 4,
    ) -> None:
        super().__init__()
        if len(in_strides) != 1:
            reason = f"DeformPSRoIPool reads one map and gets {len(in_strides)}: choose the neck Reduction, or null"
            raise Misfit("roi_pool", reason)
        self.scale, self.out_channels, self.output_size = 1 / in_strides[0], out_channels, output_size
        self.group_size, self.gamma, self.sample_per_part = group_size, gamma, sample_per_part
        self.maps = Conv2D(in_channels, out_channels * group_size**2, 1, weight_attr=normal(0.01))
        slow = {"weight_attr": zeros(offset_lr), "bias_attr": zeros(offset_lr)}
        self.fields = Conv2D(in_channels, 2 * group_size**2, 1, **slow)

    def level(self, boxes: Tensor) -> Tensor:
        """The one level there is: [R, 4] -> [R] int64."""
        return paddle.zeros([boxes.shape[0]], dtype="int64")

    def level_of_square(self, side: float) -> int:
        """The one level there is."""
        return 0

    def forward(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        """One map [N, C_in, H, W] and R RoIs -> [R, C, P, P]."""
        offset, _ = self.offsets(features, rois)
        return self._pool(F.relu(self.maps(features[0])), rois, offset)

    def offsets(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> tuple[Tensor, None]:
        """Offsets [R, 2, P, P], x first, in units of gamma times the RoI's size; there is no mask."""
        return self._pool(self.fields(features[0]), rois, None), None

    def _pool(self, maps: Tensor, rois: Rois, offset: Tensor | None) -> Tensor:
        return deform_roi_pool(
            maps,
            rois.boxes,
            rois.counts,
            self.output_size,
            self.scale,
            gamma=self.gamma,
            offset=offset,
            semantics="legacy",
            sample_per_part=self.sample_per_part,
            group_size=self.group_size,
        )


class _Branch(nn.Layer):
    """The layers that make offsets and, when modulated, masks; see `DeformRoIPool`."""

    def __init__(self, inputs: int, bins: int, modulated: bool, branch: str, hidden: int, lr_scale: float) -> None:
        super().__init__()

        def layers(hidden_layers: int, outputs: int) -> nn.Sequential:
            return _fully_connected(inputs, hidden, hidden_layers, outputs, lr_scale)

        self.mask = None
        if branch == "paper":
            self.offset = layers(2, 3 * bins) if modulated else layers(0, 2 * bins)
        else:
            self.offset = layers(2, 2 * bins)
            self.mask = layers(1, bins) if modulated else None


def _answer(offset: nn.Layer, mask: nn.Layer | None, plain: Tensor) -> Tensor:
    """Offsets and, behind them, the logits of masks where there are any: [R, 2 P P] or [R, 3 P P]."""
    answer = offset(plain)
    return answer if mask is None else paddle.concat([answer, mask(plain)], axis=1)


def _fully_connected(inputs: int, hidden: int, hidden_layers: int, outputs: int, lr_scale: float) -> nn.Sequential:
    """Fully connected layers with ReLUs between them; hidden weights from N(0, 0.01), the last layer zero."""
    layers: list[nn.Layer] = []
    for _ in range(hidden_layers):
        hidden_layer = nn.Linear(inputs, hidden, weight_attr=normal(0.01, lr_scale), bias_attr=zeros(lr_scale))
        layers += [hidden_layer, nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, outputs, weight_attr=zeros(lr_scale), bias_attr=zeros(lr_scale)))
