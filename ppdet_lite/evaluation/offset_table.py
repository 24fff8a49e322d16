"""What deformable convolutions sample, by the size of the objects: effective dilation, and samples outside of boxes.

Objects are small, medium or large: a third of the dataset's objects each, by the square root of their box area.
"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.deployment.detect import evaluation_mode
from ppdet_lite.evaluation.offsets import (
    ConvSamples,
    conv_samples,
    deformable_parts,
    record_arguments,
    sampling_positions,
    stacked_convs,
)
from ppdet_lite.evaluation.progress import log_progress
from ppdet_lite.modeling.deform import DeformConv2D

SIZES = ("small", "medium", "large")
IGNORED = -1


class Moments:
    """Mean and standard deviation of numbers that arrive in parts."""

    def __init__(self) -> None:
        self.count, self.sum, self.squares = 0, 0.0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Add numbers of any shape; NaNs are left out."""
        values = values[np.isfinite(values)].astype(np.float64)
        self.count += values.size
        self.sum += values.sum()
        self.squares += (values**2).sum()

    def as_dict(self) -> dict[str, Any]:
        """Return `mean`, `std` (None without numbers) and `count`."""
        if not self.count:
            return {"mean": None, "std": None, "count": 0}
        mean = self.sum / self.count
        return {"mean": mean, "std": max(self.squares / self.count - mean**2, 0.0) ** 0.5, "count": self.count}


Measured = dict[tuple[str, str, str], Moments]  # by layer or "stacked", kind of number, size of the object


@paddle.no_grad()
def offset_table(
    detector: TrainedModel, dataset: CocoDataset, loader: Loader, stage: int | None = None
) -> dict[str, Any]:
    """Return statistics of the sampling of each deformable convolution over the images of a dataset.

    `effective_dilation`, of the filters by size of the object at their center: the mean distance between horizontally
    and vertically adjacent sampling points of a filter, in cells of the layer's input (Dai et al. 2017, section 4.2 and
    table 2). A convolution without offsets has its dilation. A filter whose center lies in several boxes belongs to the
    smallest; one in none is `background`; one in a crowd region only is left out.

    `outside_box`, of the filters at the centers of the objects: the share of the sampling weight that lies outside of
    the object's box (what Zhu et al. 2019, section 3, correct). The weight of a sample is its mask, 1 in version 1; it
    is divided among the four cells that bilinear interpolation reads, each of which is inside if its center is.
    `outside_box_without_offsets` is the same for a regular convolution in this place.

    `stacked` has these shares for paths through the last three deformable convolutions of a stage, or of the backbone
    if `stage` is None; the weight of a path is the product of its masks. With several deformable groups, the first is
    measured. `size_limits`: the square roots of box areas that separate the sizes, in pixels of the image.

    Raises UserError for a model without deformable convolutions and for a dataset without objects.
    """
    parts = deformable_parts(detector.model)
    convs = {name: layer for name, layer in parts.items() if isinstance(layer, DeformConv2D)}
    if not convs:
        raise UserError(f"{detector.source}: the model has no deformable convolutions; set model.backbone.deformable")
    stack, limits = stacked_convs(convs, stage), _size_limits(dataset)
    paths = {**{name: [name] for name in convs}, "stacked": stack}
    measured: Measured = defaultdict(Moments)
    batches = EvalBatches(dataset, detector.preprocess, dataclasses.replace(loader, batch_size=1))
    for batch in log_progress(batches.iterate_with_targets(), len(dataset)):
        images, (target,) = paddle.to_tensor(batch["images"]), batch["targets"]
        with record_arguments(convs) as calls, evaluation_mode(detector.model):
            detector.model.backbone(images)
        samples = {name: conv_samples(layer, *calls[name], images.shape[3]) for name, layer in convs.items()}
        boxes, is_crowd = target["boxes"].astype(np.float64), target["is_crowd"].astype(bool)
        sides = np.sqrt(np.prod((boxes[:, 2:] - boxes[:, :2]) / batch["scales"][0, ::-1], axis=1))
        sizes = np.where(is_crowd, IGNORED, np.searchsorted(limits, sides))
        _add_dilations(measured, samples, boxes, sizes, batch["image_sizes"][0])
        _add_shares(measured, samples, paths, boxes[~is_crowd], sizes[~is_crowd])
    return {
        "images": len(dataset),
        "objects": int(dataset.object_counts.sum()),
        "size_limits": limits.tolist(),
        "layers": {
            name: {"effective_dilation": _by_size(measured, name, "effective_dilation"), **_shares(measured, name)}
            for name in convs
        },
        "stacked": {"layers": stack, **_shares(measured, "stacked")},
    }


def _add_dilations(
    measured: Measured,
    samples: Mapping[str, ConvSamples],
    boxes: np.ndarray,
    sizes: np.ndarray,
    image_size: np.ndarray,
) -> None:
    """Add the effective dilations in one image. boxes [G, 4]: in pixels of the network input; image_size: (h, w)."""
    for name, sample in samples.items():
        dilation, owners = effective_dilation(sample), _size_of_cells(sample, boxes, sizes, image_size)
        for number, size in enumerate((*SIZES, "background")):
            measured[name, "effective_dilation", size].add(dilation[owners == number])


def _add_shares(
    measured: Measured,
    samples: Mapping[str, ConvSamples],
    paths: Mapping[str, Sequence[str]],
    boxes: np.ndarray,
    sizes: np.ndarray,
) -> None:
    """Add the shares outside of the boxes of one image, for the filter, or path of filters, at the center of each."""
    regular = {name: _without_offsets(sample) for name, sample in samples.items()}
    for name, path in paths.items():
        for kind, sampled in (("outside_box", samples), ("outside_box_without_offsets", regular)):
            for box, number in zip(boxes, sizes, strict=True):
                share = outside_share([sampled[layer] for layer in path], box)
                measured[name, kind, SIZES[number]].add(np.array(share))


def effective_dilation(sample: ConvSamples) -> np.ndarray:
    """Return the effective dilation of the filter of each output cell, [H, W], in input cells; see `offset_table`."""
    kernel = round(len(sample.taps) ** 0.5)
    points = (sample.taps[:, :, None, None] + sample.offset).reshape(kernel, kernel, *sample.offset.shape[1:])
    across = np.linalg.norm(points[:, 1:] - points[:, :-1], axis=2)
    down = np.linalg.norm(points[1:] - points[:-1], axis=2)
    cells = across.shape[2:]
    return np.concatenate([across.reshape(-1, *cells), down.reshape(-1, *cells)]).mean(axis=0)


def outside_share(layers: Sequence[ConvSamples], box: np.ndarray) -> float:
    """Return the share of the sampling weight outside of a box for the filter at its center; see `offset_table`.

    layers: stacked convolutions in order of execution; box [4]: in pixels of the network input. NaN if the filter
    samples nothing.
    """
    positions, modulation = sampling_positions(layers, (box[:2] + box[2:]) / 2)
    stride = layers[0].in_stride
    cells = (positions - 0.5) / stride
    first = np.floor(cells)
    inside = total = 0.0
    for corner in itertools.product((0, 1), repeat=2):
        cell = first + corner
        weight = modulation * np.prod(1 - np.abs(cells - cell), axis=1)
        # zeros are read beyond the feature map
        weight = weight * ((cell >= 0) & (cell < layers[0].input_size)).all(axis=1)
        center = stride * cell + 0.5
        total += weight.sum()
        inside += weight[((center >= box[:2]) & (center < box[2:])).all(axis=1)].sum()
    return 1 - inside / total if total > 0 else float("nan")


def _by_size(measured: Measured, name: str, kind: str) -> dict[str, dict[str, Any]]:
    """Return the moments of one kind of number by size of the object."""
    sizes = (*SIZES, "background") if kind == "effective_dilation" else SIZES
    return {size: measured[name, kind, size].as_dict() for size in sizes}


def _shares(measured: Measured, name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the shares outside of boxes of a layer or of the stacked layers."""
    return {kind: _by_size(measured, name, kind) for kind in ("outside_box", "outside_box_without_offsets")}


def _size_limits(dataset: CocoDataset) -> np.ndarray:
    """Return the square roots of box areas [2] that divide the objects of a dataset into thirds."""
    objects = [dataset.annotations(index) for index in range(len(dataset))]
    boxes = np.concatenate([annotated.boxes[~annotated.is_crowd] for annotated in objects])
    if not len(boxes):
        raise UserError("the dataset has no objects, by whose size offsets are measured; use another split")
    return np.quantile(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)), [1 / 3, 2 / 3])


def _without_offsets(sample: ConvSamples) -> ConvSamples:
    """Return the sampling of a regular convolution."""
    return sample._replace(offset=np.zeros_like(sample.offset), mask=np.ones_like(sample.mask))


def _size_of_cells(sample: ConvSamples, boxes: np.ndarray, sizes: np.ndarray, image_size: np.ndarray) -> np.ndarray:
    """Return for each output cell the size of the smallest box that contains its center, [H, W]: an index of SIZES.

    len(SIZES): in no box; IGNORED: in a crowd region only, or beyond the image. boxes [G, 4]: in pixels of the network
    input; image_size: (h, w).
    """
    stride = sample.in_stride * sample.stride
    y, x = np.indices(sample.mask.shape[1:]) * stride + 0.5
    owners = np.full(y.shape, len(SIZES))
    areas = np.where(sizes < 0, np.inf, np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    for k in np.argsort(-areas, kind="stable"):  # the smallest box is the last, and crowd regions are the first
        x1, y1, x2, y2 = boxes[k]
        owners[(x >= x1) & (x < x2) & (y >= y1) & (y < y2)] = sizes[k]
    owners[(y >= image_size[0]) | (x >= image_size[1])] = IGNORED
    return owners
