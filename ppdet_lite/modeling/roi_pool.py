"""RoI pooling: RoIAlign, deformable pooling with an offset branch, and position-sensitive deformable pooling."""

from collections.abc import Sequence
from typing import Annotated, Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from pydantic import Field

from ppdet_lite.config.constrained_types import Bins, Channels, PositiveFloat, PositiveInt
from ppdet_lite.config.registry import Derived, register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.components import RoIPool
from ppdet_lite.modeling.initialization import normal, zeros
from ppdet_lite.modeling.layers import Conv2D
from ppdet_lite.ops.deform_roi_pool import deform_roi_pool
from ppdet_lite.ops.roi_align import pyramid_roi_align
from ppdet_lite.ops.roi_levels import pyramid_level, square_level
from ppdet_lite.ops.sample_groups import SampleGroups, sample_groups
from ppdet_lite.structures import Rois


class _PyramidPool(RoIPool):
    """Base class of poolings from a pyramid, which assigns RoIs to levels by size (FPN, equation 1)."""

    def __init__(
        self, in_strides: Sequence[int], output_size: int, levels: int, canonical_size: float, canonical_stride: int
    ) -> None:
        super().__init__()
        self.output_size, self.canonical_size = output_size, canonical_size
        self.strides = list(in_strides)[:levels]
        if len(self.strides) < levels:
            reason = f"{levels} levels, but the neck has {len(in_strides)} (strides {', '.join(map(str, in_strides))})"
            raise IncompatibleArguments("levels", f"{reason}; set it to at most {len(in_strides)}")
        if canonical_stride not in self.strides:
            reason = f"RoIs are pooled at strides {self.strides}, not {canonical_stride}; choose one of these"
            raise IncompatibleArguments("canonical_stride", reason)
        self.canonical_level = self.strides.index(canonical_stride)

    def level(self, boxes: Tensor) -> Tensor:
        """Return the level, 0 = finest, from which each box is pooled: [R, 4] -> [R] int64."""
        return pyramid_level(boxes, len(self.strides), self.canonical_size, self.canonical_level)

    def level_of_square(self, side: float) -> int:
        """Return the level of a square box with this side in pixels, computed on the host."""
        return square_level(side, len(self.strides), self.canonical_size, self.canonical_level)

    def _select_levels(self, features: Sequence[Tensor], finest: int) -> tuple[Sequence[Tensor], list[int]]:
        """Return the features of the levels from which RoIs are pooled, and their strides.

        finest: index of the first level contained in `features`.
        """
        strides = self.strides[finest:][: len(features)]
        return features[: len(strides)], strides


@register
class RoIAlign(_PyramidPool):
    """RoIAlign from a pyramid, each RoI from the level for its size.

    Args:
        sampling_ratio: samples per bin and axis; 0 adapts it to the RoI (detectron2, mmdetection, PaddleDetection), 2
            in torchvision.
        aligned: with the half-pixel shift (detectron2, mmdetection, PaddleDetection 2.6.0) or without (torchvision, and
            PaddleDetection from 2.6.1 and 2.7.1 on, which ignores its configs' `aligned: True`).
        levels: RoIs are pooled from this number of levels, counted from the finest; FPN's fifth is for the RPN only.
        canonical_size, canonical_stride: a square RoI of this side in pixels is pooled from the level of this stride,
            one of half that side from the next finer level.
    """

    def __init__(
        self,
        in_strides: Derived[Sequence[int]],
        output_size: Bins = 7,
        sampling_ratio: Annotated[int, Field(ge=0, le=64)] = 0,
        aligned: bool = True,
        levels: PositiveInt = 4,
        canonical_size: PositiveFloat = 224.0,
        canonical_stride: PositiveInt = 16,
    ) -> None:
        super().__init__(in_strides, output_size, levels, canonical_size, canonical_stride)
        self.sampling_ratio, self.aligned = sampling_ratio, aligned

    def forward(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        """Features [N, C, H_l, W_l] from level `finest` on and R RoIs -> [R, C, P, P]; see `RoIPool.forward`."""
        features, strides = self._select_levels(features, finest)
        level = self.level(rois.boxes) - finest
        return pyramid_roi_align(features, strides, rois, level, self.output_size, self.sampling_ratio, self.aligned)


@register
class DeformRoIPool(_PyramidPool):
    """Deformable RoI pooling: each bin is moved by a learned offset and, if modulated, scaled by a learned mask.

    RoIs are first pooled without offsets. From the result, fully connected layers (the branch) compute the offsets of
    the bins, in units of gamma times the RoI's size, and their mask. Then the RoIs are pooled again (Dai et al. 2017,
    section 2.2; Zhu et al. 2019, section 3.2). The last layer of each branch is initialized with 0.

    Args:
        modulated: version 2, with a mask: the sigmoid of the branch's output multiplies each bin, initially by 0.5.
        branch: `paper`: version 1 has one layer, version 2 two hidden layers shared by offsets and mask; `mmcv`: two
            hidden layers for the offsets and, if modulated, one separate hidden layer for the mask.
        hidden: width of the hidden layers; the paper's version 1 has none.
        offset_lr: learning rate of the branch relative to the rest of the model; 0.01 in the paper of version 1, 1 in
            that of version 2 and in mmcv. If it is too high, bins move off their objects and do not return.
        per_level: a separate branch for each level, as in mmdetection, instead of one for all.
        sampling_ratio, levels, canonical_size, canonical_stride: see `RoIAlign`.
    """

    def __init__(
        self,
        in_strides: Derived[Sequence[int]],
        in_channels: Derived[int],
        modulated: bool = False,
        branch: Literal["paper", "mmcv"] = "paper",
        hidden: Channels = 1024,
        offset_lr: PositiveFloat = 0.1,
        gamma: PositiveFloat = 0.1,
        output_size: Bins = 7,
        sampling_ratio: Annotated[int, Field(ge=0, le=64)] = 0,
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
            shared = _Branch(*settings)
            self.offset, self.mask = shared.offset, shared.mask

    def forward(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        """Features [N, C, H_l, W_l] from level `finest` on and R RoIs -> [R, C, P, P]; see `RoIPool.forward`."""
        groups = self._sample_groups(features, rois, finest)
        offset, mask = self.offsets(features, rois, finest, groups)
        return self._pool(features, rois, finest, groups, offset, mask)

    def offsets(
        self, features: Sequence[Tensor], rois: Rois, finest: int = 0, groups: SampleGroups | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return offsets [R, 2, P, P], x first, in units of gamma * RoI size, and the mask [R, 1, P, P] or None."""
        pooled = self._pool(features, rois, finest, groups).flatten(1)
        size, bins = self.output_size, self.output_size**2
        if self.branches is None:
            output = _run_branch(self.offset, self.mask, pooled)
        else:
            output = self._run_branches(pooled, self.level(rois.boxes))
        offset = output[:, : 2 * bins].reshape([-1, 2, size, size])
        if not self.modulated:
            return offset, None
        return offset, F.sigmoid(output[:, 2 * bins :]).reshape([-1, 1, size, size])

    def _run_branches(self, pooled: Tensor, level: Tensor) -> Tensor:
        """Return for each RoI the output of its level's branch. All branches run on all RoIs: a level may have none."""
        output = 0
        for i, branch in enumerate(self.branches):
            on_level = (level == i).astype(pooled.dtype).unsqueeze(1)
            output = output + on_level * _run_branch(branch.offset, branch.mask, pooled)
        return output

    def _sample_groups(self, features: Sequence[Tensor], rois: Rois, finest: int) -> SampleGroups | None:
        """Return the sample groups for both poolings, so that they are computed once; None in a traced graph."""
        if not paddle.in_dynamic_mode():
            return None
        scales = [1.0 / stride for stride in self._select_levels(features, finest)[1]]
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
        features, strides = self._select_levels(features, finest)
        return deform_roi_pool(
            features,
            rois.boxes,
            rois.counts,
            output_size=self.output_size,
            spatial_scale=[1.0 / stride for stride in strides],
            sampling_ratio=self.sampling_ratio,
            gamma=self.gamma,
            offset=offset,
            mask=mask,
            level=self.level(rois.boxes) - finest,
            groups=groups,
        )


@register
class DeformPSRoIPool(RoIPool):
    """Position-sensitive deformable RoI pooling from a single map (Dai et al. 2017, section 2.2 and figure 4).

    As in R-FCN, a 1x1 convolution computes separate maps for each part of a RoI; bin (i, j) is pooled from the maps of
    its part. A second 1x1 convolution, initialized with 0, computes offset fields; pooled in the same way, they give
    the offsets of the bins. Semantics are those of the authors' operator ("legacy" in `deform_roi_pool`).

    Args:
        out_channels: channels of the pooled features; there are group_size^2 times as many maps.
        group_size: number of parts of a RoI along each axis; in the paper, the number of bins.
        offset_lr: learning rate of the offset fields relative to the rest of the model.
        sample_per_part: samples per bin and axis.
    """

    def __init__(
        self,
        in_strides: Derived[Sequence[int]],
        in_channels: Derived[int],
        out_channels: Channels = 32,
        group_size: Bins = 7,
        output_size: Bins = 7,
        gamma: PositiveFloat = 0.1,
        offset_lr: PositiveFloat = 0.1,
        sample_per_part: Bins = 4,
    ) -> None:
        super().__init__()
        if len(in_strides) != 1:
            reason = f"DeformPSRoIPool needs a single map, not {len(in_strides)}: choose the neck Reduction, or null"
            raise IncompatibleArguments("type", reason)
        self.scale, self.out_channels, self.output_size = 1 / in_strides[0], out_channels, output_size
        self.group_size, self.gamma, self.sample_per_part = group_size, gamma, sample_per_part
        self.maps = Conv2D(in_channels, out_channels * group_size**2, 1, weight_attr=normal(0.01))
        self.fields = Conv2D(
            in_channels, 2 * group_size**2, 1, weight_attr=zeros(offset_lr), bias_attr=zeros(offset_lr)
        )

    def level(self, boxes: Tensor) -> Tensor:
        """Return level 0 for each box: [R, 4] -> [R] int64."""
        return paddle.zeros([boxes.shape[0]], dtype="int64")

    def level_of_square(self, side: float) -> int:
        """Return 0, the only level."""
        return 0

    def forward(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> Tensor:
        """A single map [N, C_in, H, W] and R RoIs -> [R, C, P, P]."""
        offset, _ = self.offsets(features, rois)
        return self._pool(F.relu(self.maps(features[0])), rois, offset)

    def offsets(self, features: Sequence[Tensor], rois: Rois, finest: int = 0) -> tuple[Tensor, None]:
        """Return offsets [R, 2, P, P], x first, in units of gamma * RoI size; there is no mask."""
        return self._pool(self.fields(features[0]), rois, None), None

    def _pool(self, maps: Tensor, rois: Rois, offset: Tensor | None) -> Tensor:
        return deform_roi_pool(
            maps,
            rois.boxes,
            rois.counts,
            output_size=self.output_size,
            spatial_scale=self.scale,
            gamma=self.gamma,
            offset=offset,
            semantics="legacy",
            sample_per_part=self.sample_per_part,
            group_size=self.group_size,
        )


class _Branch(nn.Layer):
    """The layers that compute offsets and, if modulated, masks; see `DeformRoIPool`."""

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


def _run_branch(offset: nn.Layer, mask: nn.Layer | None, pooled: Tensor) -> Tensor:
    """Return the offsets [R, 2 P P], or offsets and mask logits [R, 3 P P], of pooled features [R, C P P]."""
    output = offset(pooled)
    return output if mask is None else paddle.concat([output, mask(pooled)], axis=1)


def _fully_connected(inputs: int, hidden: int, hidden_layers: int, outputs: int, lr_scale: float) -> nn.Sequential:
    """Build fully connected layers with ReLUs between them; hidden weights from N(0, 0.01), the last layer 0."""
    layers: list[nn.Layer] = []
    for _ in range(hidden_layers):
        hidden_layer = nn.Linear(inputs, hidden, weight_attr=normal(0.01, lr_scale), bias_attr=zeros(lr_scale))
        layers += [hidden_layer, nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*layers, nn.Linear(inputs, outputs, weight_attr=zeros(lr_scale), bias_attr=zeros(lr_scale)))
