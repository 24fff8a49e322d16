"""Deformable RoI pooling, versions 1 and 2, with the semantics of mmcv's operator or of the authors' own.

A bin is a weighted sum of pixels. `_build_table` makes a table with a row for each pixel. `_compute_taps` computes the
indices and weights of a bin's pixels along each axis: its taps, see `ops.bilinear`. RoIs are summed in groups with
similar numbers of samples (`ops.sample_groups`): `sum_rows` on a CPU, `sum_padded_bins` on a GPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor
from paddle.vision.ops import roi_align

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.bilinear import Taps, cross_taps, dense_taps, linear_taps, sum_rows
from ppdet_lite.ops.checks import Pair, as_pair, full_precision, require, require_shape
from ppdet_lite.ops.padded_bins import sum_padded_bins
from ppdet_lite.ops.roi_levels import image_of_roi, pool_by_level
from ppdet_lite.ops.sample_groups import SampleGroups, corners_and_sizes, fixed_groups, sample_groups
from ppdet_lite.structures import Rois

SEMANTICS = ("aligned", "unaligned", "legacy")


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
    "unaligned" is RoIAlign(aligned=False): without the half-pixel shift, RoIs at least one cell large, and no offsets.
    "legacy" (the authors' operator): corners are rounded and inclusive. A bin has sample_per_part^2 samples, the first
    at its corner, and is the mean of those within [-0.5, H - 0.5] and [-0.5, W - 0.5], or 0 if there are none.
    Offsets may have fewer parts than bins, and may differ between `classes`, equal runs of consecutive output channels:
    [R, 2*classes, part_size, part_size]. With group_size G, pooling is position-sensitive: x has C*G*G channels, and
    bin (i, j) of output channel c pools channel (c*G + floor(i*G/P))*G + floor(j*G/P) of x.

    Differentiable in x, offset and mask, not in boxes. Computed in float32, or in float64 if x is float64. Samples need
    many times the memory of the result: they are copied in chunks, or not at all (see `sum_rows`). A traced graph calls
    Paddle's RoIAlign except for "legacy", with the bins as RoIs: for inference only, as offsets get no gradient.
    groups: `sample_groups` of the same RoIs; if None, adaptive sampling computes them and synchronizes with the GPU.
    Raises ValueError, with the shapes, if they are inconsistent.
    Sources: Dai et al. 2017 (Deformable ConvNets), section 2.2; Zhu et al. 2019 (version 2), section 3.2.
    """
    features, scales = (x, spatial_scale) if isinstance(x, list | tuple) else ([x], [spatial_scale])
    output_size = as_pair("output_size", output_size, 1)
    part_size = output_size if part_size is None else as_pair("part_size", part_size, 1)
    samples = sample_per_part if semantics == "legacy" else sampling_ratio
    classes = offset.shape[1] // 2 if semantics == "legacy" and offset is not None else 1
    settings = _Settings(scales, output_size, part_size, semantics, samples, gamma, group_size, classes)
    _check(features, Rois(boxes, counts), level, offset, mask, settings)
    _check_samples(sampling_ratio, sample_per_part, settings)
    with paddle.amp.auto_cast(enable=False):
        *features, boxes, offset, mask = full_precision(*features, boxes.detach(), offset, mask)
        rois, level = Rois(boxes, counts), paddle.zeros_like(boxes[:, 0], dtype="int64") if level is None else level
        if not settings.legacy and not paddle.in_dynamic_mode():
            return _pool_by_roi_align(features, rois, level, offset, mask, settings)
        if settings.legacy:
            groups = fixed_groups(boxes, output_size, sample_per_part)
        elif groups is None:
            groups = sample_groups(boxes, level, output_size, scales, sampling_ratio, settings.aligned)
        return _pool_by_sums(features, rois, level, offset, mask, groups, settings)


class _Settings(NamedTuple):
    """Arguments of `deform_roi_pool` that are no tensors; see there."""

    scales: Sequence[float]  # cells per input pixel of each level
    output_size: tuple[int, int]
    part_size: tuple[int, int]
    semantics: str
    samples: int  # per bin and axis; 0 adapts the number to the RoI
    gamma: float
    group_size: int
    classes: int  # of offsets

    @property
    def legacy(self) -> bool:
        """Whether the semantics are those of the authors' operator."""
        return self.semantics == "legacy"

    @property
    def aligned(self) -> bool:
        """Whether corners are shifted by half a cell."""
        return self.semantics != "unaligned"

    @property
    def adaptive(self) -> bool:
        """Whether the number of samples depends on the RoI. Neighboring samples are then at most one cell apart."""
        return self.samples == 0


class _Bins(NamedTuple):
    """Upper left corners and sizes of the bins of R RoIs, in cells of each RoI's map; cell centers are at integers."""

    y: Tensor  # [R, Ph, Pw or 1, classes, 1]
    x: Tensor  # [R, Ph or 1, Pw, classes, 1]
    height: Tensor  # [R, 1, 1, 1, 1]
    width: Tensor  # [R, 1, 1, 1, 1]


class _Maps(NamedTuple):
    """The feature maps from which the bins of R RoIs are pooled."""

    origin: Tensor  # [R, Ph or 1, Pw or 1, 1, 1] int64: first pixel in the table
    height: Tensor  # [R, 1, 1, 1, 1] int64
    width: Tensor  # [R, 1, 1, 1, 1] int64


def _pool_by_sums(
    features: Sequence[Tensor],
    rois: Rois,
    level: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    groups: SampleGroups,
    settings: _Settings,
) -> Tensor:
    bins = _compute_bins(rois.boxes, level, offset, settings)
    maps = _locate_maps(features, rois, level, settings)
    y_taps, x_taps = _compute_taps(bins, maps, mask, groups, settings)
    table = _build_table(features, settings)
    if dispatch.eager_on_gpu(table) and rois.boxes.shape[0]:
        pooled = sum_padded_bins(table, y_taps, x_taps, groups)
    else:
        pooled = sum_rows(table, *_combine_taps(y_taps, x_taps, groups, settings))
    channels = features[0].shape[1] // settings.group_size**2
    pooled = pooled.reshape([rois.boxes.shape[0], *settings.output_size, channels])
    if groups.order is not None:
        pooled = paddle.gather(pooled, paddle.argsort(groups.order))
    return pooled.transpose([0, 3, 1, 2])


def _compute_bins(boxes: Tensor, level: Tensor, offset: Tensor | None, settings: _Settings) -> _Bins:
    output_size, part_size = settings.output_size, settings.part_size
    if settings.legacy:  # C's round(): halves are rounded away from zero; the lower right corner is inclusive
        boxes = boxes.sign() * (boxes.abs() + 0.5).floor() + paddle.to_tensor([0, 0, 1, 1], dtype=boxes.dtype)
    start, size = corners_and_sizes(boxes, settings.scales, level, settings.aligned)
    if settings.legacy:
        size = size.clip(min=0.1)
    x, y = start.reshape([-1, 2, 1, 1, 1, 1]).unbind(1)
    roi_width, roi_height = size.reshape([-1, 2, 1, 1, 1, 1]).unbind(1)
    height, width = roi_height / output_size[0], roi_width / output_size[1]
    y = y + height * paddle.arange(output_size[0], dtype=boxes.dtype).reshape([1, -1, 1, 1, 1])
    x = x + width * paddle.arange(output_size[1], dtype=boxes.dtype).reshape([1, 1, -1, 1, 1])
    if offset is not None:
        offset = settings.gamma * offset.reshape([-1, settings.classes, 2, *part_size, 1])
        if part_size != output_size:
            for axis in range(2):
                nearest = paddle.arange(output_size[axis]) * part_size[axis] // output_size[axis]
                offset = paddle.index_select(offset, nearest, axis=3 + axis)
        offset_x, offset_y = offset.transpose([2, 0, 3, 4, 1, 5]).unbind()
        y, x = y + offset_y * roi_height, x + offset_x * roi_width
    return _Bins(y, x, height, width)


def _build_table(features: Sequence[Tensor], settings: _Settings) -> Tensor:
    """Return all feature maps as one table; a row contains the channels of one class at one pixel.

    Order of the rows: image, level, position-sensitive part, y, x, class.
    """
    channels = features[0].shape[1] // settings.group_size**2
    # [N, C, part * H * W]: a CPU transposes a tensor with more axes ten times more slowly
    tables = [f.reshape([0, channels, -1]).transpose([0, 2, 1]) for f in features]
    table = paddle.concat(tables, axis=1).flatten(0, 1)
    return table if settings.classes == 1 else table.reshape([-1, channels // settings.classes])


def _locate_maps(features: Sequence[Tensor], rois: Rois, level: Tensor, settings: _Settings) -> _Maps:
    if paddle.in_dynamic_mode():
        sizes = np.array([f.shape[2:] for f in features])  # [L, 2]; computed on the host
    else:
        sizes = paddle.stack([paddle.shape(f)[2:] for f in features]).astype("int64")
    part_areas = sizes.prod(axis=1)
    areas = part_areas * settings.group_size**2  # of all position-sensitive parts
    of_level = [areas.cumsum() - areas, part_areas, sizes[:, 0], sizes[:, 1]]
    if paddle.in_dynamic_mode():
        of_roi = paddle.gather(paddle.to_tensor(np.stack(of_level)), level, axis=1)
        start, part_area, height, width = of_roi.reshape([4, -1, 1, 1, 1, 1]).unbind()
    else:  # one by one: paddle2onnx converts a gather along the second axis wrongly if there is one level
        gathered = [paddle.gather(values, level).reshape([-1, 1, 1, 1, 1]) for values in of_level]
        start, part_area, height, width = gathered
    image = image_of_roi(rois.counts, rois.boxes.shape[0]).reshape([-1, 1, 1, 1, 1])
    origin = start + image * areas.sum()
    if settings.group_size > 1:
        row, column = (np.arange(size) * settings.group_size // size for size in settings.output_size)
        part = row.reshape([-1, 1, 1, 1]) * settings.group_size + column.reshape([-1, 1, 1])
        origin = origin + paddle.to_tensor(part) * part_area
    return _Maps(origin, height, width)


def _compute_taps(
    bins: _Bins, maps: _Maps, mask: Tensor | None, groups: SampleGroups, settings: _Settings
) -> tuple[Taps, Taps]:
    """Return the taps of all bins along y and along x: [R, Ph or 1, Pw or 1, classes, K].

    The table row of a pixel is the sum of its two indices, its weight the product of its two weights.
    """
    axes = (bins.y, bins.height, maps.height), (bins.x, bins.width, maps.width)
    counts = groups.counts
    if dispatch.eager_on_gpu(bins.y):  # both axes in the same operators
        corners, extents, lengths = zip(*axes, strict=True)
        both = paddle.stack(paddle.broadcast_tensors(corners)), paddle.stack(extents), paddle.stack(lengths)
        counts = counts if counts is None else counts.reshape([2, -1, 1, 1, 1, 1])
        taps = _mean_taps(*both, max(groups.largest), counts, settings)
        (y, x), (y_weight, x_weight) = (tensor.unbind() for tensor in taps)
    else:
        counts = [None, None] if counts is None else counts.reshape([2, -1, 1, 1, 1, 1]).unbind()
        (y, y_weight), (x, x_weight) = (_mean_taps(*axes[i], groups.largest[i], counts[i], settings) for i in range(2))
    if settings.adaptive:
        y_weight = y_weight * ((bins.height > 0) & (bins.width > 0)).astype(y_weight.dtype)
    if mask is not None:
        y_weight = y_weight * mask.reshape([-1, *mask.shape[2:], 1, 1])
    width, origin = maps.width, maps.origin
    if settings.classes > 1:  # by tensors, and a sum last: oneDNN computes other products of indices wrongly
        class_count = paddle.to_tensor([settings.classes])
        width, origin = width * class_count, origin * class_count
        x = x * class_count + paddle.arange(settings.classes).reshape([-1, 1])
    y = y * width + origin
    return (y, y_weight), (x, x_weight)


def _mean_taps(
    corner: Tensor, extent: Tensor, length: Tensor, samples: int, count: Tensor | None, settings: _Settings
) -> Taps:
    """Return taps of the mean of the samples along an axis of bins [..., 1], on maps of `length` cells.

    samples: number of samples per bin, or the largest if count [..., 1] has the number for each RoI. All then get the
    taps of the largest, and those after a RoI's own count + 1 have weight 0.
    """
    # first sample in a bin, in sample distances; margin around the map
    first, reach = (0, 0.5) if settings.legacy else (0.5, 1)
    number = paddle.arange(samples, dtype=corner.dtype)
    position = corner + (number + first) * extent / (samples if count is None else count)
    last = (length - 1).astype(corner.dtype)
    inside = (position >= -reach) & (position <= last + reach)
    weight = (inside if count is None else inside & (number < count)).astype(corner.dtype)
    if settings.legacy:
        weight = weight / weight.sum(-1, keepdim=True).clip(min=1)
    else:
        weight = weight / (samples if count is None else count)
    position = paddle.where(position < 0, paddle.zeros_like(position), position)
    position = paddle.where(position < last, position, last)
    if settings.adaptive:
        return dense_taps(position, weight, last + 1, count)
    index, pixel_weight = linear_taps(position, last + 1)
    return index.flatten(-2), (pixel_weight * paddle.stack([weight, weight], axis=-1)).flatten(-2)


@paddle.jit.not_to_static
def _combine_taps(y_taps: Taps, x_taps: Taps, groups: SampleGroups, settings: _Settings) -> list[Taps]:
    """Return the taps of the bins [R * Ph * Pw * classes, K], one pair per group, with the RoIs in `groups.order`."""
    parts = [(*y_taps, *x_taps)]
    if groups.order is not None:
        parts = [[paddle.gather(tensor, groups.order) for tensor in parts[0]]]
    if len(groups.groups) > 1:
        sizes = [len(group.rois) for group in groups.groups]
        parts = list(zip(*(tensor.split(sizes) for tensor in parts[0]), strict=True))
    combined = []
    for group, tensors in zip(groups.groups, parts, strict=True):
        if len(parts) > 1:
            counts = [count + 1 for count in group.samples for _ in range(2)]
            tensors = [tensor[..., :count] for tensor, count in zip(tensors, counts, strict=True)]
        y, y_weight, x, x_weight = tensors
        index, weight = cross_taps((y, y_weight), (x, x_weight))
        combined.append((index.flatten(0, -2), weight.flatten(0, -2)))
    return combined


def _pool_by_roi_align(
    features: Sequence[Tensor],
    rois: Rois,
    level: Tensor,
    offset: Tensor | None,
    mask: Tensor | None,
    settings: _Settings,
) -> Tensor:
    """Compute aligned pooling by Paddle's RoIAlign, with the bins as RoIs if there are offsets; for inference only."""
    boxes, counts = rois.boxes, rois.counts
    # RoIAlign would divide by 0 samples in an empty RoI: move it off the map, which gives 0
    if settings.adaptive and settings.aligned:
        has_extent = (boxes[:, 2:] > boxes[:, :2]).all(axis=1, keepdim=True)
        boxes = paddle.where(has_extent, boxes, paddle.to_tensor([-9000, -9000, -8999, -8999], dtype=boxes.dtype))
    size, scales, sampling_ratio = settings.output_size, settings.scales, settings.samples or -1
    if offset is not None:
        y, x, height, width = _compute_bins(boxes, level, offset, settings)
        if settings.adaptive:
            height, width = _avoid_integers(height), _avoid_integers(width)
        boxes = paddle.concat([x, y, x + width, y + height], axis=-1).reshape([-1, 4]) + 0.5
        size, scales, bins = 1, [1.0] * len(scales), settings.output_size[0] * settings.output_size[1]
        counts, level = counts * bins, level.unsqueeze(1).expand([-1, bins]).flatten()

    def pool(i: int, feature: Tensor, part: Rois) -> Tensor:  # no reshape in here: it fails in oneDNN without RoIs
        return roi_align(feature, part.boxes, part.counts, size, scales[i], sampling_ratio, settings.aligned)

    pooled = pool_by_level(features, Rois(boxes, counts), level, pool)
    if offset is not None:
        pooled = pooled.reshape([-1, *settings.output_size, features[0].shape[1]]).transpose([0, 3, 1, 2])
    return pooled if mask is None else pooled * mask


def _avoid_integers(extent: Tensor) -> Tensor:
    """Keep bin sizes at least 1e-4 cells off integers, so that rounding in RoIAlign cannot change a sample count."""
    whole = (-extent).floor()  # oneDNN's ceil overwrites its input
    return -(whole + (-extent - whole).clip(1e-4, 1 - 1e-4))


@paddle.jit.not_to_static
def _check(
    features: Sequence[Tensor],
    rois: Rois,
    level: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    settings: _Settings,
) -> None:
    scales, classes, group_size = settings.scales, settings.classes, settings.group_size
    require(len(features) == len(scales) > 0, f"{len(features)} levels of x, but {len(scales)} values of spatial_scale")
    require(len(features) == 1 or level is not None, "x has several levels: pass level [R]")
    plain = offset is None and mask is None
    require(settings.aligned or plain, "semantics='unaligned' takes no offset and no mask; use 'aligned'")
    for feature in features:
        require_shape("x", feature, [features[0].shape[0], features[0].shape[1], None, None])
    count, channels = rois.boxes.shape[0], features[0].shape[1]
    require(
        group_size > 0 and classes > 0 and channels % (group_size**2 * classes) == 0,
        f"the {channels} channels of x cannot be divided into group_size={group_size} squared, times {classes} classes",
    )
    require_shape("boxes", rois.boxes, [None, 4])
    require_shape("counts", rois.counts, [features[0].shape[0]])
    require_shape("level", level, [count])
    require_shape("offset", offset, [count, 2 * classes, *settings.part_size])
    require_shape("mask", mask, [count, 1, *settings.output_size])


@paddle.jit.not_to_static
def _check_samples(sampling_ratio: int, sample_per_part: int, settings: _Settings) -> None:
    known = ", ".join(SEMANTICS)
    require(settings.semantics in SEMANTICS, f"semantics must be one of {known}, not {settings.semantics!r}")
    if settings.legacy:
        require(sampling_ratio == 0, "semantics='legacy' has no sampling_ratio; use sample_per_part instead")
        require(sample_per_part > 0, f"sample_per_part must be at least 1, not {sample_per_part}")
    else:
        plain = settings.part_size == settings.output_size and settings.group_size == 1
        require(plain, "part_size and group_size need semantics='legacy'")
        require(sampling_ratio >= 0, f"sampling_ratio must be at least 0, not {sampling_ratio}")
