"""Visualization of deformable layers: sampling points and moved bins drawn on an image, and statistics of offsets.

Points are (x, y). Pixel coordinates, of the image or of the network input, are continuous: the center of the first
pixel is 0.5. Cell coordinates of a feature map are indices, as in convolutions: the center of the first cell is 0.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import paddle
from paddle import nn

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.drawing import Color, add_title, write_image
from ppdet_lite.data.loading.transforms import Batch, collate, image_sample
from ppdet_lite.deployment.detect import ImageDetections, TrainedNetwork, detect
from ppdet_lite.modeling.deform import DeformConv2D
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.roi_pool import DeformPSRoIPool, DeformRoIPool
from ppdet_lite.ops.boxes import decode_boxes

DEFORMABLE_POOLINGS = (DeformRoIPool, DeformPSRoIPool)
STACKED_CONVS = 3  # number of stacked convolutions to trace: 9^3 points
DRAWN_DETECTIONS = 3  # number of detections to draw
LONG_SIDE = 1000  # of a visualization in pixels
MAGENTA, WHITE, BLACK = (255, 0, 255), (255, 255, 255), (0, 0, 0)  # not in the color map


class ConvSamples(NamedTuple):
    """The sampling of a deformable convolution in one image, for its first deformable group."""

    offset: np.ndarray  # [K, 2, H, W] (x, y) in input cells, for each tap and output cell
    mask: np.ndarray  # [K, H, W], ones in version 1
    taps: np.ndarray  # [K, 2] (x, y), sampling points without offsets for output cell 0
    stride: int  # input cells per output cell
    in_stride: int  # image pixels per input cell
    input_size: tuple[int, int]  # (w, h) of the input in cells


def deformable_parts(model: FasterRCNN) -> dict[str, DeformConv2D | DeformRoIPool | DeformPSRoIPool]:
    """Return the deformable layers of a model by name: those before the RoIs, then of the last stage, then earlier."""
    kinds = (DeformConv2D, *DEFORMABLE_POOLINGS)
    return {name: layer for name, layer in model.named_sublayers() if isinstance(layer, kinds)}


@contextlib.contextmanager
def record_arguments(layers: Mapping[str, nn.Layer]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """Record the arguments of the last call of each layer inside the block, under the keys of `layers`."""
    calls: dict[str, tuple[Any, ...]] = {}
    handles = [
        layer.register_forward_pre_hook(lambda layer, arguments, name=name: calls.update({name: arguments}))
        for name, layer in layers.items()
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@paddle.no_grad()
def offset_statistics(model: FasterRCNN, batch: Batch) -> dict[str, float]:
    """Return statistics of the offsets of each deformable layer in a batch; {} without such layers.

    NAME/mean and NAME/max are those of |offset|, in input cells or, for RoI pooling, in units of the layer's `gamma`
    times the RoI size. NAME/mask is the mean of the mask, if the layer has one.
    """
    parts = deformable_parts(model)
    if not parts:
        return {}
    with record_arguments(parts) as calls:
        list(detect(TrainedNetwork(model), [batch]))
    statistics = {}
    for name, arguments in calls.items():
        offset, mask = parts[name].offsets(*arguments)
        statistics[f"{name}/mean"] = offset.abs().mean().item()
        statistics[f"{name}/max"] = offset.abs().max().item()
        if mask is not None:
            statistics[f"{name}/mask"] = mask.mean().item()
    return statistics


@paddle.no_grad()
def draw_offsets(
    detector: TrainedModel,
    source: Path,
    output: Path,
    points: Sequence[tuple[float, float]] | None = None,
    stage: int | None = None,
) -> list[Path]:
    """Visualize the deformable layers of a detector on an image; return the files written into `output`.

    NAME_point1.png, ...: the points at which a cell samples the image through the last three deformable convolutions of
    a stage, or of the backbone if `stage` is None (Dai et al. 2017, figure 6). points: (x, y) in pixels of the image;
    None: the centers of the best detections.
    NAME_bins1.png, ...: the moved bins of deformable RoI pooling, for the RoIs of the best detections (figure 7).

    Raises UserError for a model without deformable layers, an image that cannot be read, points outside of it, a
    `points` or `stage` that the model does not support, and an output that cannot be written.
    """
    model, parts = detector.model, deformable_parts(detector.model)
    if not parts:
        raise UserError(
            f"{detector.source}: the model has no deformable layers; configure model.backbone.deformable or "
            "model.roi_pool: {type: DeformRoIPool}"
        )
    convs = stacked_convs(parts, stage)
    if not convs and (points is not None or stage is not None):
        raise UserError("--points and --stage require deformable convolutions; this model has RoI pooling only")
    image = load_image(str(source))
    height, width = image.shape[:2]
    for x, y in points or ():
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--points {x:g},{y:g} is outside of {source}, which has {width} x {height} pixels")
    batch = collate([image_sample(image, detector.preprocess, 0)], detector.preprocess)
    with record_arguments({**parts, "predictor": model.predictor}) as calls:
        (results,) = detect(TrainedNetwork(model), [batch])
    results = ImageDetections(*(part[:DRAWN_DETECTIONS] if isinstance(part, np.ndarray) else part for part in results))
    if points is None:
        if not len(results.boxes):
            hint = ", or give --points" if convs else ""
            raise UserError(f"{source}: no object is detected; use another image{hint}")
        points = ((results.boxes[:, :2] + results.boxes[:, 2:]) / 2).tolist()

    scale = batch["scales"][0, ::-1]  # (x, y)
    drawings = {}
    if convs:
        samples = [conv_samples(parts[name], *calls[name], batch["images"].shape[3]) for name in convs]
        for i, point in enumerate(points, start=1):
            positions, modulation = sampling_positions(samples, point * scale)
            drawings[f"point{i}"] = draw_points(image, positions / scale, modulation, point, convs)
    if isinstance(model.roi_pool, DEFORMABLE_POOLINGS):
        if not len(results.boxes):
            get_logger().warning("%s: no object is detected, so there are no bins to draw", source)
        rois, offset, mask = _detection_rois(results, model, calls, scale, image.shape[1::-1])
        for i, (roi, moves) in enumerate(zip(rois, offset, strict=True)):
            bins, moved = (boxes / np.tile(scale, 2) for boxes in bin_boxes(roi, moves, model.roi_pool.gamma))
            drawings[f"bins{i + 1}"] = draw_bins(image, bins, moved, mask[i].ravel(), results.boxes[i])
    files = [output / f"{source.stem}_{name}.png" for name in drawings]
    for file, drawing in zip(files, drawings.values(), strict=True):
        write_image(file, drawing)
        get_logger().info("%s", file)
    return files


def stacked_convs(parts: Mapping[str, nn.Layer], stage: int | None) -> list[str]:
    """Return the names of the last STACKED_CONVS deformable convolutions of a stage, or of all stages, in order.

    [] for a model without any. Raises UserError if only other stages have deformable convolutions.
    """
    names = [name for name, layer in parts.items() if isinstance(layer, DeformConv2D)]
    chosen = [name for name in names if stage is None or f".res{stage}." in name]
    if names and not chosen:
        stages = sorted({name.split(".")[1] for name in names})
        raise UserError(f"--stage {stage} has no deformable convolutions; they are in {', '.join(stages)}")
    return chosen[-STACKED_CONVS:]


def conv_samples(layer: DeformConv2D, x: paddle.Tensor, image_width: int) -> ConvSamples:
    """Compute the sampling of a layer with input x. image_width: width of the batch, a multiple of every stride."""
    offset, mask = layer.offsets(x)
    kernel, (h, w) = layer.weight.shape[2], offset.shape[2:]
    first = offset[0, : 2 * kernel**2].numpy().reshape(-1, 2, h, w)[:, ::-1]
    return ConvSamples(
        first,
        np.ones((kernel**2, h, w)) if mask is None else mask[0, : kernel**2].numpy(),
        np.indices((kernel, kernel)).reshape(2, -1).T[:, ::-1] * layer.dilation - layer.padding,
        layer.stride,
        image_width // x.shape[3],
        (x.shape[3], x.shape[2]),
    )


def sampling_positions(convs: Sequence[ConvSamples], point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points that a cell samples through n stacked deformable convolutions, given in order of execution.

    point: (x, y) in pixels of the network input. Returns positions [K^n, 2] in the same frame, and modulation [K^n],
    the product of the masks on the path. Samples outside of a feature map are dropped, since they read zeros. A sample
    between cells uses the offsets and masks of the nearest cell.
    """
    positions, modulation = np.asarray(point, np.float64).reshape(1, 2), np.ones(1)
    for conv in reversed(convs):
        # For output cell i, the middle tap of a convolution with padding (k - 1) / 2 samples input cell stride * i; the
        # same holds for the stem, max pooling and strided 1x1 convolutions. So cell i of any map is centered on pixel
        # stride * i.
        cells = (positions - 0.5) / (conv.in_stride * conv.stride)
        size = conv.mask.shape[:0:-1]  # (w, h)
        inside = ((cells > -1) & (cells < size)).all(axis=1)
        cells, modulation = cells[inside], modulation[inside]
        x, y = np.rint(cells).astype(int).clip(0, np.array(size) - 1).T
        offset, mask = conv.offset[:, :, y, x].transpose(2, 0, 1), conv.mask[:, y, x].T
        reads = cells[:, None] * conv.stride + conv.taps + offset  # [P, K, 2]
        positions = reads.reshape(-1, 2) * conv.in_stride + 0.5
        modulation = (modulation[:, None] * mask).ravel()
    return positions, modulation


def bin_boxes(roi: np.ndarray, offset: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Return a RoI's bins and moved bins, [P * P, 4] by rows. offset [2, P, P] (x, y): in units of gamma * RoI size."""
    size = offset.shape[-1]
    extent = roi[2:] - roi[:2]
    corner = roi[:2] + np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1) * extent / size  # [P, P, 2]
    moved = corner + gamma * extent * offset.transpose(1, 2, 0)
    bins, moved = (np.concatenate([c, c + extent / size], axis=-1).reshape(-1, 4) for c in (corner, moved))
    return bins, moved


def draw_points(
    image: np.ndarray, positions: np.ndarray, modulation: np.ndarray, point: Sequence[float], layers: Sequence[str]
) -> np.ndarray:
    """Draw sampling positions from blue (lowest modulation) to red (highest), and the point in magenta.

    Coordinates are in pixels of the image; positions outside of it are dropped. layers: names of the traced
    convolutions. Returns the visualization with a title.
    """
    view = _view(image, np.array([0, 0, *image.shape[1::-1]]))
    inside = ((positions >= 0) & (positions < image.shape[1::-1])).all(axis=1)
    positions, modulation = positions[inside], modulation[inside]
    colors = _colors(modulation ** (1 / len(layers)))
    for k in np.argsort(modulation, kind="stable"):
        view.dot(positions[k], 3, colors[k])
    view.dot(np.asarray(point), 7, MAGENTA)
    text = f"{len(positions)} samples through {layers[-1]} and {len(layers) - 1} before it; {_range(modulation)}"
    return add_title(view.canvas, text)


def draw_bins(
    image: np.ndarray, bins: np.ndarray, moved: np.ndarray, mask: np.ndarray, detection: np.ndarray
) -> np.ndarray:
    """Draw a RoI's bins in white, moved bins from blue (lowest mask) to red (highest), and the detection in magenta.

    Boxes are in pixels of the image. Returns an enlarged crop around the RoI with a title.
    """
    both = np.concatenate([bins, detection[None]])
    around = np.concatenate([both.min(axis=0)[:2], both.max(axis=0)[2:]])
    view = _view(image, around + np.array([-0.5, -0.5, 0.5, 0.5]) * np.tile(around[2:] - around[:2], 2))
    for thickness, color in ((3, BLACK), (1, WHITE)):
        for box in bins:
            view.box(box, thickness, color)
    colors = _colors(mask)
    for k in np.argsort(mask, kind="stable"):
        view.box(moved[k], 2, colors[k])
    view.box(detection, 4, MAGENTA)
    return add_title(view.canvas, f"bins (white), moved bins, detection (magenta); {_range(mask)}")


class _View(NamedTuple):
    """A resized crop of an image to draw on."""

    canvas: np.ndarray
    origin: np.ndarray  # [2] (x, y), its top left corner in the image
    zoom: np.ndarray  # [2] (x, y)

    def dot(self, point: np.ndarray, radius: int, color: Color) -> None:
        x, y = np.floor((point - self.origin) * self.zoom).astype(int).tolist()
        cv2.circle(self.canvas, (x, y), radius + 1, BLACK, cv2.FILLED)
        cv2.circle(self.canvas, (x, y), radius, color, cv2.FILLED)

    def box(self, box: np.ndarray, thickness: int, color: Color) -> None:
        corners = (box.reshape(2, 2) - self.origin) * self.zoom
        corners = corners.clip(-9, np.array(self.canvas.shape[1::-1]) + 9)  # OpenCV overflows for distant points
        cv2.rectangle(self.canvas, *np.rint(corners).astype(int).tolist(), color, thickness)


def _view(image: np.ndarray, box: np.ndarray) -> _View:
    """Crop the pixels that a box touches, and resize the crop to a long side of LONG_SIDE."""
    size = np.array(image.shape[1::-1])
    x1, y1 = origin = np.floor(box[:2]).clip(0, size - 1).astype(int)
    x2, y2 = np.ceil(box[2:]).clip(origin + 1, size).astype(int)
    part = image[y1:y2, x1:x2]
    factor = LONG_SIDE / max(part.shape[:2])
    interpolation = cv2.INTER_LINEAR if factor > 1 else cv2.INTER_AREA
    size = np.rint(factor * (np.array([x2, y2]) - origin)).astype(int).clip(1)
    return _View(cv2.resize(part, size.tolist(), interpolation=interpolation), origin, size / part.shape[1::-1])


def _detection_rois(
    results: ImageDetections,
    model: FasterRCNN,
    calls: Mapping[str, tuple[Any, ...]],
    scale: np.ndarray,
    size: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the RoIs [D, 4] of detections, with offsets [D, 2, P, P] and masks [D, P, P].

    They are matched by their boxes, because scores are averaged over the stages of a cascade. scale: (x, y); size: that
    of the image, (w, h).
    """
    features, rois, *_ = calls["roi_pool"]
    deltas = model.predictor(*calls["predictor"]).deltas.reshape([rois.boxes.shape[0], -1, 4])
    boxes = decode_boxes(rois.boxes.unsqueeze(1), deltas, model.predictor.delta_weights).numpy()
    boxes = (boxes / np.tile(scale, 2)).clip(0, np.tile(size, 2))
    rows = []
    for box, k in zip(results.boxes, results.classes, strict=True):
        of_class = boxes[:, k if boxes.shape[1] > 1 else 0]
        rows.append(np.abs(of_class - box).max(axis=1).argmin())
    offset, mask = model.roi_pool.offsets(features, rois)
    mask = paddle.ones_like(offset[:, :1]) if mask is None else mask
    return rois.boxes.numpy()[rows], offset.numpy()[rows], mask.numpy()[rows, 0]


def _colors(values: np.ndarray) -> list[Color]:
    """Map values to RGB from blue (lowest) to red (highest); red if all are equal."""
    highest = values.max(initial=0)
    fraction = 1 - (highest - values) / max(highest - values.min(initial=highest), 1e-9)
    levels = np.rint(25 + 205 * fraction).astype(np.uint8).reshape(-1, 1)  # the ends of the color map are too dark
    return [tuple(color) for color in cv2.applyColorMap(levels, cv2.COLORMAP_TURBO).reshape(-1, 3)[:, ::-1].tolist()]


def _range(mask: np.ndarray) -> str:
    highest = mask.max(initial=0)
    lowest = mask.min(initial=highest)
    return f"mask {lowest:.2g} (blue) to {highest:.2g} (red)" if lowest < highest else f"mask {highest:.2g}"
