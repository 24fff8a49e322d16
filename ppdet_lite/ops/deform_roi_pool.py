"""Deformable RoI pooling, versions 1 and 2, with the semantics of mmcv's operator or of the authors' own.

Bins are computed as weighted sums of table rows; `ops.bilinear` explains the tables and the "taps" of a sum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor
from paddle.vision.ops import roi_align

from ppdet_lite.ops.bilinear import Taps, cross_taps, dense_taps, linear_taps, sum_rows
from ppdet_lite.ops.checks import Pair, as_pair, full_precision, require, require_shape
from ppdet_lite.ops.roi_levels import image_of_roi, pool_by_level
from ppdet_lite.structures import Rois


class SampleGroups(NamedTuple):
    """RoIs grouped by the number of samples in their bins, which grows with the RoI's size in adaptive sampling."""

    groups: list[tuple[Tensor | None, int, int]]  # (indices of the RoIs or None for all, samples along y, along x)
    counts: Tensor | None = None  # [R, 2] float: samples of each RoI along y and x; None if there is one group

    def max_count(self, axis: int) -> int:
        """Return the largest number of samples along y (0) or x (1)."""
        return max(counts[axis] for _, *counts in self.groups)


def deform_roi_pool(
    x: Tensor | Sequence[Tensor],
    boxes: Tensor,
    counts: Tensor,
    output_size: Pair,
    spatial_scale: float | Sequence[float] = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
    offset: Tensor | None = None,
    mask: Tensor | None = None,
    semantics: str = "aligned",
    level: Tensor | None = None,
    sample_per_part: int = 4,
    part_size: int | None = None,
    group_size: int = 1,
    groups: SampleGroups | None = None,
) -> Tensor:
    """Pool RoIs into P x P bins, each moved by an offset and, in version 2, scaled by a mask.

    x [N, C, H, W]; boxes [R, 4] in input pixels, packed image after image; counts int [N], RoIs per image;
    spatial_scale: feature cells per input pixel. Returns [R, C, P, P]. R = 0 and images without RoIs are legal.
    For a pyramid, x and spatial_scale are lists over its levels, and level [R] is the index of each RoI's level.
    offset [R, 2, P, P], x first, in units of gamma * the RoI's width or height; mask [R, 1, P, P] multiplies the bins.

    "aligned" (mmcv's DeformRoIPool) is RoIAlign(aligned=True) if no offset is given. A bin is the mean of
    sampling_ratio^2 samples; 0 adapts the number to the RoI: ceil(height / P) * ceil(width / P), with the RoI's size in
    cells; bins of an empty RoI are 0. Samples outside [-1, H] or [-1, W] are 0; others are clamped to the map.
    "legacy" (the authors' operator): corners are rounded and inclusive. A bin has sample_per_part^2 samples, the first
    at its corner, and is the mean of those within [-0.5, H - 0.5] and [-0.5, W - 0.5], or 0 if there are none.
    Offsets may have fewer parts than bins, and may differ between `classes`, equal runs of consecutive output channels:
    [R, 2*classes, part_size, part_size]. With group_size G, pooling is position-sensitive: x has C*G*G channels, and
    bin (i, j) of output channel c pools channel (c*G + floor(i*G/P))*G + floor(j*G/P) of x.

    Differentiable in x, offset and mask, not in boxes. Computed in float32, or in float64 if x is float64. The samples
    need many times the memory of the result and are computed in chunks (see `sum_rows`). A traced graph calls Paddle's
    RoIAlign for aligned pooling, with the bins as RoIs: for inference only, as offsets get no gradient from it.
    groups: `sample_groups` of the same RoIs; if None, adaptive sampling computes them and synchronizes with the GPU.
    Raises ValueError, with the shapes, if they are inconsistent.
    Sources: Dai et al. 2017 (Deformable ConvNets), section 2.2; Zhu et al. 2019 (version 2), section 3.2.
    """
    features, scales = (x, spatial_scale) if isinstance(x, list | tuple) else ([x], [spatial_scale])
    output_size = as_pair("output_size", output_size, 1)
    part_size = output_size if part_size is None else as_pair("part_size", part_size, 1)
    legacy = semantics == "legacy"
    classes = offset.shape[1] // 2 if legacy and offset is not None else 1
    _check(features, scales, boxes, counts, offset, mask, level, output_size, part_size, classes, group_size)
    _check_samples(semantics, sampling_ratio, sample_per_part, output_size, part_size, group_size)
    with paddle.amp.auto_cast(enable=False):
        *features, boxes, offset, mask = full_precision(*features, boxes.detach(), offset, mask)
        rois, level = Rois(boxes, counts), paddle.zeros_like(boxes[:, 0], dtype="int64") if level is None else level
        if not legacy and not paddle.in_dynamic_mode():
            return _pool_by_roi_align(features, scales, rois, level, output_size, sampling_ratio, gamma, offset, mask)
        bins = _compute_bins(boxes, scales, level, output_size, part_size, legacy, classes, gamma, offset)
        origin, map_size = _locate_maps(features, rois, level, output_size, group_size)
        groups = groups or _group_by_samples(bins, sample_per_part if legacy else sampling_ratio)
        adaptive = not legacy and sampling_ratio == 0
        taps, order = _compute_taps(groups, bins, origin, map_size, mask, legacy, adaptive, classes)
        pooled = sum_rows(_build_table(features, group_size, classes), *taps)
        pooled = pooled.reshape([boxes.shape[0], *output_size, features[0].shape[1] // group_size**2])
        return (pooled if order is None else paddle.gather(pooled, order)).transpose([0, 3, 1, 2])


class _Bins(NamedTuple):
    """Upper left corners and sizes of the bins of R RoIs, in cells of each RoI's map; cell centers are at integers."""

    y: Tensor  # [R, Ph, Pw or 1, classes, 1]
    x: Tensor  # [R, Ph or 1, Pw, classes, 1]
    height: Tensor  # [R, 1, 1, 1, 1]
    width: Tensor  # [R, 1, 1, 1, 1]


def _compute_bins(boxes, scales, level, output_size, part_size, legacy, classes, gamma, offset) -> _Bins:
    scale = paddle.gather(paddle.to_tensor(scales, dtype=boxes.dtype), level).unsqueeze(1)
    if legacy:  # C's round(): halves are rounded away from zero; the lower right corner is inclusive
        boxes = boxes.sign() * (boxes.abs() + 0.5).floor() + paddle.to_tensor([0, 0, 1, 1], dtype=boxes.dtype)
    edges = boxes * scale - 0.5
    start, size = edges[:, :2], edges[:, 2:] - edges[:, :2]
    if legacy:
        size = size.clip(min=0.1)
    x, y = start.reshape([-1, 2, 1, 1, 1, 1]).unbind(1)
    roi_width, roi_height = size.reshape([-1, 2, 1, 1, 1, 1]).unbind(1)
    height, width = roi_height / output_size[0], roi_width / output_size[1]
    y = y + height * paddle.arange(output_size[0], dtype=boxes.dtype).reshape([1, -1, 1, 1, 1])
    x = x + width * paddle.arange(output_size[1], dtype=boxes.dtype).reshape([1, 1, -1, 1, 1])
    if offset is not None:
        offset = gamma * offset.reshape([-1, classes, 2, *part_size, 1])
        if part_size != output_size:
            for axis in range(2):
                nearest = paddle.arange(output_size[axis]) * part_size[axis] // output_size[axis]
                offset = paddle.index_select(offset, nearest, axis=3 + axis)
        offset_x, offset_y = offset.transpose([2, 0, 3, 4, 1, 5]).unbind()
        y, x = y + offset_y * roi_height, x + offset_x * roi_width
    return _Bins(y, x, height, width)


def _build_table(features: Sequence[Tensor], group_size: int, classes: int) -> Tensor:
    """Return all feature maps as one table; a row contains the channels of one class at one pixel.

    Order of the rows: level, image, position-sensitive part, y, x, class.
    """
    channels = features[0].shape[1] // group_size**2
    # [N, C, part * H * W]: a CPU transposes a tensor with more axes ten times more slowly
    tables = [f.reshape([0, channels, -1]).transpose([0, 2, 1]).flatten(0, 1) for f in features]
    return paddle.concat(tables).reshape([-1, channels // classes])


def _locate_maps(features, rois, level, output_size, group_size) -> tuple[Tensor, Tensor]:
    """Return each bin's map: its first pixel in the table [R, Ph, Pw, 1, 1], and its size (h, w) [R, 2]."""
    sizes = paddle.stack([paddle.shape(f)[2:] for f in features]).astype("int64")  # [L, 2]
    areas = sizes.prod(axis=1)
    starts = (areas.cumsum() - areas) * (paddle.shape(features[0])[0] * group_size**2)
    start, area = (paddle.gather(t, level).reshape([-1, 1, 1, 1, 1]) for t in (starts, areas))
    image = image_of_roi(rois.counts, rois.boxes.shape[0]).reshape([-1, 1, 1, 1, 1])
    ph = (paddle.arange(output_size[0]) * group_size // output_size[0]).reshape([-1, 1, 1, 1])
    pw = (paddle.arange(output_size[1]) * group_size // output_size[1]).reshape([-1, 1, 1])
    return start + (image * group_size**2 + ph * group_size + pw) * area, paddle.gather(sizes, level)


def _compute_taps(samples, bins, origin, map_size, mask, legacy, adaptive, classes) -> tuple[list[Taps], Tensor | None]:
    """Return the taps of all bins, one pair per sample group, and the indices that restore the order of the RoIs."""
    map_height, map_width = map_size.reshape([-1, 2, 1, 1, 1, 1]).unbind(1)
    axes = (bins.y, bins.height, map_height), (bins.x, bins.width, map_width)
    (y, y_weight), (x, x_weight) = (_mean_taps(*axes[i], samples, i, legacy, adaptive) for i in range(2))
    if adaptive:
        y_weight = y_weight * ((bins.height > 0) & (bins.width > 0)).astype(y_weight.dtype)
    if mask is not None:
        y_weight = y_weight * mask.reshape([-1, *mask.shape[2:], 1, 1])
    y = y * map_width + origin
    class_count = paddle.to_tensor([classes])  # a tensor: oneDNN miscomputes sums fused with a product by an int
    taps = []
    for rois, *counts in samples.groups:

        def of_group(tensor: Tensor, axis: int, rois: Tensor | None = rois, counts: list[int] = counts) -> Tensor:
            if rois is None:
                return tensor
            tensor = paddle.gather(tensor, rois)
            return tensor[..., : counts[axis] + 1] if adaptive else tensor

        index, weight = cross_taps((of_group(y, 0), of_group(y_weight, 0)), (of_group(x, 1), of_group(x_weight, 1)))
        index = index * class_count + paddle.arange(classes).reshape([-1, 1])
        taps.append((index.flatten(0, -2), weight.flatten(0, -2)))
    order = None if samples.counts is None else paddle.argsort(paddle.concat([rois for rois, _, _ in samples.groups]))
    return taps, order


def sample_groups(
    boxes: Tensor, level: Tensor, output_size: Pair, spatial_scale: Sequence[float], sampling_ratio: int = 0
) -> SampleGroups:
    """Return the sample groups that aligned `deform_roi_pool` uses, so that calls with the same RoIs can share them.

    Adaptive sampling (sampling_ratio = 0) synchronizes with the GPU once.
    """
    boxes, size = full_precision(boxes.detach())[0], as_pair("output_size", output_size, 1)
    bins = _compute_bins(boxes, spatial_scale, level, size, size, False, 1, 0.0, None)
    return _group_by_samples(bins, sampling_ratio)


def _group_by_samples(bins: _Bins, samples: int) -> SampleGroups:
    """Return the sample groups for `samples` per bin and axis; 0: one sample per cell, rounded up."""
    if samples or not bins.height.shape[0]:
        return SampleGroups([(None, samples or 1, samples or 1)])
    sizes = paddle.concat([bins.height.reshape([-1, 1]), bins.width.reshape([-1, 1])], axis=1)
    counts = np.fmax(np.ceil(sizes.numpy()), 1)  # also 1 for NaN
    grids, group = np.unique(counts.astype(int), axis=0, return_inverse=True)
    if len(grids) == 1:
        return SampleGroups([(None, *grids[0].tolist())])
    groups = [(paddle.to_tensor(np.flatnonzero(group.ravel() == g)), *grid) for g, grid in enumerate(grids.tolist())]
    return SampleGroups(groups, paddle.to_tensor(counts))


def _mean_taps(corner: Tensor, extent: Tensor, length: Tensor, samples: SampleGroups, axis: int, legacy, dense) -> Taps:
    """Return taps of the mean of the samples along one axis of bins [..., 1], on maps of `length` cells.

    dense: True if neighboring samples are at most one cell apart. If sample counts vary between RoIs, all get the taps
    of the largest count, and those after a RoI's own count + 1 have weight 0.
    """
    first, reach = (0, 0.5) if legacy else (0.5, 1)  # first sample in a bin, in sample distances; margin around the map
    number = paddle.arange(samples.max_count(axis), dtype=corner.dtype)
    count = number.shape[0] if samples.counts is None else samples.counts[:, axis].reshape([-1, 1, 1, 1, 1])
    position = corner + (number + first) * extent / count
    last = (length - 1).astype(corner.dtype)
    inside = (position >= -reach) & (position <= last + reach)
    weight = (inside if samples.counts is None else inside & (number < count)).astype(corner.dtype)
    weight = weight / (weight.sum(-1, keepdim=True).clip(min=1) if legacy else count)
    position = paddle.where(position < 0, paddle.zeros_like(position), position)
    position = paddle.where(position < last, position, last)
    if dense:
        return dense_taps(position, weight, last + 1, None if samples.counts is None else count)
    index, pixel_weight = linear_taps(position, last + 1)
    return index.flatten(-2), (pixel_weight * paddle.stack([weight, weight], axis=-1)).flatten(-2)


def _pool_by_roi_align(features, scales, rois, level, output_size, sampling_ratio, gamma, offset, mask) -> Tensor:
    """Compute aligned pooling by Paddle's RoIAlign, with the bins as RoIs if there are offsets; for inference only."""
    boxes, counts = rois.boxes, rois.counts
    if sampling_ratio == 0:  # RoIAlign would divide by 0 samples in an empty RoI: move it off the map, which gives 0
        has_extent = (boxes[:, 2:] > boxes[:, :2]).all(axis=1, keepdim=True)
        boxes = paddle.where(has_extent, boxes, paddle.to_tensor([-9000, -9000, -8999, -8999], dtype=boxes.dtype))
    size = output_size
    if offset is not None:
        y, x, height, width = _compute_bins(boxes, scales, level, output_size, output_size, False, 1, gamma, offset)
        if sampling_ratio == 0:
            height, width = _avoid_integers(height), _avoid_integers(width)
        boxes = paddle.concat([x, y, x + width, y + height], axis=-1).reshape([-1, 4]) + 0.5
        size, scales, bins = 1, [1.0] * len(scales), output_size[0] * output_size[1]
        counts, level = counts * bins, level.unsqueeze(1).expand([-1, bins]).flatten()

    def pool(i: int, feature: Tensor, part: Rois) -> Tensor:  # no reshape in here: it fails in oneDNN without RoIs
        return roi_align(feature, part.boxes, part.counts, size, scales[i], sampling_ratio or -1, aligned=True)

    pooled = pool_by_level(features, Rois(boxes, counts), level, pool)
    if offset is not None:
        pooled = pooled.reshape([-1, *output_size, features[0].shape[1]]).transpose([0, 3, 1, 2])
    return pooled if mask is None else pooled * mask


def _avoid_integers(extent: Tensor) -> Tensor:
    """Keep bin sizes at least 1e-4 cells off integers, so that rounding in RoIAlign cannot change a sample count."""
    whole = (-extent).floor()  # oneDNN's ceil overwrites its input
    return -(whole + (-extent - whole).clip(1e-4, 1 - 1e-4))


@paddle.jit.not_to_static
def _check(features, scales, boxes, counts, offset, mask, level, output_size, part_size, classes, group_size) -> None:
    require(len(features) == len(scales) > 0, f"{len(features)} levels of x, but {len(scales)} values of spatial_scale")
    require(len(features) == 1 or level is not None, "x has several levels: pass level [R]")
    for feature in features:
        require_shape("x", feature, [features[0].shape[0], features[0].shape[1], None, None])
    count, channels = boxes.shape[0], features[0].shape[1]
    require(
        group_size > 0 and classes > 0 and channels % (group_size**2 * classes) == 0,
        f"the {channels} channels of x cannot be divided into group_size={group_size} squared, times {classes} classes",
    )
    require_shape("boxes", boxes, [None, 4])
    require_shape("counts", counts, [features[0].shape[0]])
    require_shape("level", level, [count])
    require_shape("offset", offset, [count, 2 * classes, *part_size])
    require_shape("mask", mask, [count, 1, *output_size])


@paddle.jit.not_to_static
def _check_samples(semantics, sampling_ratio, sample_per_part, output_size, part_size, group_size) -> None:
    require(semantics in ("aligned", "legacy"), f"semantics must be aligned or legacy, not {semantics!r}")
    if semantics == "legacy":
        require(sampling_ratio == 0, "sampling_ratio needs semantics='aligned'; use sample_per_part instead")
        require(sample_per_part > 0, f"sample_per_part must be at least 1, not {sample_per_part}")
    else:
        require(part_size == output_size and group_size == 1, "part_size and group_size need semantics='legacy'")
        require(sampling_ratio >= 0, f"sampling_ratio must be at least 0, not {sampling_ratio}")
