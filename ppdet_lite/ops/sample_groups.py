"""Groups of RoIs that are pooled together: in adaptive sampling, the number of samples in a bin grows with the RoI.

All RoIs of a group get the number of samples of its largest; samples that a RoI does not have get weight 0. On a CPU
each group has RoIs of equal counts: nothing is padded, and any number of groups is cheap. On a GPU every group takes 13
more operators, so there are at most GPU_GROUPS: then the whole pooling takes at most 300, forward and backward.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.checks import Pair, as_pair, full_precision

GPU_GROUPS = 5
# Taps (see `ops.bilinear`) of a group on a GPU: a larger group is divided while there are fewer than GPU_GROUPS. With
# 256 channels, one float32 copy of the pixels gathered for so many takes 128 MiB.
GPU_GROUP_TAPS = 1 << 17


class SampleGroup(NamedTuple):
    """RoIs that are pooled together."""

    rois: np.ndarray | None  # indices; None: all RoIs
    samples: tuple[int, int]  # per bin along y and x: the largest of its RoIs, per axis


class SampleGroups(NamedTuple):
    """All R RoIs in groups."""

    groups: list[SampleGroup]
    order: Tensor | None = None  # [R] int64: the RoIs, group after group; None: in the given order
    counts: Tensor | None = None  # [2, R] float: samples of each RoI along y and x; None if all are equal

    @property
    def largest(self) -> tuple[int, int]:
        """The largest number of samples along y and along x."""
        y, x = zip(*(group.samples for group in self.groups), strict=True)
        return max(y), max(x)


def corners_and_sizes(
    boxes: Tensor, spatial_scale: Sequence[float], level: Tensor, aligned: bool = True
) -> tuple[Tensor, Tensor]:
    """Return upper left corners and sizes (x, y) [R, 2] of RoIs in cells of their maps; cell centers are at integers.

    boxes [R, 4] in input pixels; spatial_scale: cells per pixel of each level; level [R].
    aligned: shift the corners by half a cell; otherwise they are not shifted, and sizes are at least one cell.
    """
    scale = paddle.gather(paddle.to_tensor(spatial_scale, dtype=boxes.dtype), level).unsqueeze(1)
    edges = boxes * scale - 0.5 if aligned else boxes * scale
    sizes = edges[:, 2:] - edges[:, :2]
    return edges[:, :2], sizes if aligned else sizes.clip(min=1)


def sample_groups(
    boxes: Tensor,
    level: Tensor,
    output_size: Pair,
    spatial_scale: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> SampleGroups:
    """Return the groups that `deform_roi_pool` uses, so that calls with the same RoIs can share them.

    aligned: whether its semantics are "aligned" instead of "unaligned".
    Adaptive sampling (sampling_ratio = 0) synchronizes with the GPU once.
    """
    output_size = as_pair("output_size", output_size, 1)
    if sampling_ratio or not boxes.shape[0]:
        return fixed_groups(boxes, output_size, sampling_ratio or 1)
    _, size = corners_and_sizes(full_precision(boxes.detach())[0], spatial_scale, level, aligned)
    width, height = size.split(2, axis=1)
    bin_size = paddle.concat([height / output_size[0], width / output_size[1]], axis=1)
    counts = np.fmax(np.ceil(bin_size.numpy()), 1)  # also 1 for NaN
    if dispatch.on_cpu(boxes):
        distinct, group = np.unique(counts, axis=0, return_inverse=True)
        groups = [np.flatnonzero(group.ravel() == i) for i in range(len(distinct))]
    else:
        groups = _divide(counts, output_size)
    return _assemble(groups, counts)


def fixed_groups(boxes: Tensor, output_size: tuple[int, int], samples: int) -> SampleGroups:
    """Return the groups for the same number of samples in all RoIs: one, or several on a GPU to bound the memory."""
    if not paddle.in_dynamic_mode() or dispatch.on_cpu(boxes) or not boxes.shape[0]:
        return SampleGroups([SampleGroup(None, (samples, samples))])
    counts = np.full([boxes.shape[0], 2], float(samples))
    return _assemble(_divide(counts, output_size), counts)


def _assemble(groups: list[np.ndarray], counts: np.ndarray) -> SampleGroups:
    """Make tensors of groups, given as indices of RoIs, and of the counts [R, 2] of all RoIs."""
    order = np.concatenate(groups)
    is_sorted, are_equal = bool((order[1:] > order[:-1]).all()), bool((counts == counts[0]).all())
    return SampleGroups(
        [SampleGroup(rois, tuple(counts[rois].max(axis=0).astype(int).tolist())) for rois in groups],
        order=None if is_sorted else paddle.to_tensor(order),
        counts=None if are_equal else paddle.to_tensor(counts.T),
    )


def _divide(counts: np.ndarray, output_size: tuple[int, int]) -> list[np.ndarray]:
    """Divide RoIs with these counts [R, 2] into at most GPU_GROUPS groups, always the one with the most taps in two.

    The largest group has at most GPU_GROUP_TAPS taps, or a quarter of the taps of R RoIs with the largest counts.
    """
    bins = output_size[0] * output_size[1]
    groups = [np.arange(len(counts))]
    while len(groups) < GPU_GROUPS:
        taps = [len(rois) * (counts[rois].max(axis=0) + 1).prod() * bins for rois in groups]
        largest = int(np.argmax(taps))
        if taps[largest] <= GPU_GROUP_TAPS or len(groups[largest]) == 1:
            break
        groups[largest : largest + 1] = _halve(groups[largest], counts)
    return groups


def _halve(rois: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Divide a group, sorted along one axis, where the larger part gets as few taps as possible."""
    best: tuple[float, list[np.ndarray]] | None = None
    for axis in range(2):
        ordered = rois[np.argsort(counts[rois, axis], kind="stable")]
        taps = counts[ordered] + 1
        sizes = np.arange(1, len(rois))
        first = sizes * np.maximum.accumulate(taps)[:-1].prod(axis=1)
        second = sizes[::-1] * np.maximum.accumulate(taps[::-1])[-2::-1].prod(axis=1)
        larger = np.maximum(first, second)
        end = int(np.argmin(larger))
        if best is None or larger[end] < best[0]:
            best = larger[end], np.split(ordered, [end + 1])
    return best[1]
