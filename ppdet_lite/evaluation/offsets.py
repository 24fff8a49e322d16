"""Deformable parts made visible: their samples drawn on an image, and how far they are moved in numbers.

Points are (x, y). In pixels, of the image or of the network input, they are continuous: the first pixel's centre is at
0.5. In cells of a feature map they are as convolutions count: the first cell is at 0.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.drawing import Colour, titled, write_picture
from ppdet_lite.data.loading.transforms import Batch, collate, image_sample
from ppdet_lite.deployment.detect import ImageDetections, TrainedNetwork, detect
from ppdet_lite.modeling.deform import DeformConv2D
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.roi_pool import DeformPSRoIPool, DeformRoIPool

MOVED_BINS = (DeformRoIPool, DeformPSRoIPool)
LEVELS = 3  # stacked convolutions whose samples are drawn: 9^3 points
BEST = 3  # detections that are drawn
SIDE = 1000  # pixels of the long side of a picture
MAGENTA, WHITE, BLACK = (255, 0, 255), (255, 255, 255), (0, 0, 0)  # none of them in the colour map


class ConvSamples(NamedTuple):
    """Where one deformable convolution reads in one image; of several deformable groups, the first."""

    offset: np.ndarray  # [K, 2, H, W] (x, y) in cells of the input, for each tap and each unit of the output
    mask: np.ndarray  # [K, H, W], ones in version 1
    taps: np.ndarray  # [K, 2] (x, y), where the taps of the unit at 0 read unmoved
    stride: int  # from the output to the input
    in_stride: int  # from the input to the image


def deformable_parts(model: FasterRCNN) -> dict[str, DeformConv2D | DeformRoIPool | DeformPSRoIPool]:
    """The deformable layers of a model by name, in the order of execution."""
    kinds = (DeformConv2D, *MOVED_BINS)
    return {name: layer for name, layer in model.named_sublayers() if isinstance(layer, kinds)}


@contextlib.contextmanager
def recorded(layers: Mapping[str, nn.Layer]) -> Iterator[dict[str, tuple[Any, ...]]]:
    """Note meanwhile with which arguments each layer was called last; by the layers' keys."""
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
    """How far each deformable layer moves its samples in a batch; {} without such layers.

    NAME/mean and NAME/max are of |offset|, in cells of the input or, for RoI pooling, in `gamma` times the RoI's size;
    NAME/mask is the mean of the mask, where there is one.
    """
    parts = deformable_parts(model)
    if not parts:
        return {}
    with recorded(parts) as calls:
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
    """Draw what the deformable parts of a detector do in an image, and return the files written below `output`.

    NAME_point1.png, ...: from where a unit at a point reads through three stacked deformable convolutions, the last of
    a stage or, without one, of the backbone (Dai et al. 2017, figure 6). points (x, y) are in pixels of the image; None
    takes the centres of the best detections.
    NAME_bins1.png, ...: the moved bins of deformable RoI pooling, for the RoIs of the best detections (figure 7).

    Raises UserError for a model without deformable parts, an image that cannot be read, points that are not in it or
    cannot be drawn, and an output that cannot be written.
    """
    model, parts = detector.model, deformable_parts(detector.model)
    if not parts:
        raise UserError(
            f"{detector.source}: the model has no deformable parts; they are model.backbone.deformable and "
            "model.roi_pool: {type: DeformRoIPool}"
        )
    convs = _stacked_convs(parts, stage)
    if not convs and (points is not None or stage is not None):
        raise UserError("--points and --stage are for deformable convolutions; this model has deformable RoI pooling")
    image = load_image(str(source))
    height, width = image.shape[:2]
    for x, y in points or ():
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"--points {x:g},{y:g} is outside of {source}, which has {width} x {height} pixels")
    batch = collate([image_sample(image, detector.preprocess, 0)], detector.preprocess)
    with recorded({**parts, "predictor": model.predictor}) as calls:
        (found,) = detect(TrainedNetwork(model), [batch])
    found = ImageDetections(*(part[:BEST] if isinstance(part, np.ndarray) else part for part in found))
    if points is None:
        if not len(found.boxes):
            hint = ", or give --points" if convs else ""
            raise UserError(f"{source}: nothing is detected in it; take another image{hint}")
        points = ((found.boxes[:, :2] + found.boxes[:, 2:]) / 2).tolist()

    scale = batch["scales"][0, ::-1]  # (x, y)
    pictures = {}
    if convs:
        samples = [_conv_samples(parts[name], *calls[name], batch["images"].shape[3]) for name in convs]
        for i, point in enumerate(points, start=1):
            places, modulation = sampling_places(samples, point * scale)
            pictures[f"point{i}"] = draw_points(image, places / scale, modulation, point, convs)
    if isinstance(model.roi_pool, MOVED_BINS):
        if not len(found.boxes):
            get_logger().warning("%s: nothing is detected in it, so there are no bins to draw", source)
        rois, offset, mask = _rois_of(found, model, calls)
        for i, (roi, moves) in enumerate(zip(rois, offset, strict=True)):
            bins, moved = (boxes / np.tile(scale, 2) for boxes in bins_of(roi, moves, model.roi_pool.gamma))
            pictures[f"bins{i + 1}"] = draw_bins(image, bins, moved, mask[i].ravel(), found.boxes[i])
    files = [output / f"{source.stem}_{name}.png" for name in pictures]
    for file, picture in zip(files, pictures.values(), strict=True):
        write_picture(file, picture)
        get_logger().info("%s", file)
    return files


def sampling_places(convs: Sequence[ConvSamples], point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """From where a unit reads through stacked deformable convolutions, given in the order of execution.

    point (x, y) in network pixels. Returns the places [K^n, 2] likewise and their modulation [K^n], the product of the
    masks on the way; less where samples leave a map, since they read nothing there. A place between units has the
    offsets and masks of the nearest one.
    """
    places, modulation = np.asarray(point, np.float64).reshape(1, 2), np.ones(1)
    for conv in reversed(convs):
        # The middle tap of a convolution with padding (k - 1) / 2 reads at stride * i for the unit i, and so do the
        # stem, max pooling and strided 1x1 convolutions: cell i of any map is centred on pixel stride * i exactly.
        cells = (places - 0.5) / (conv.in_stride * conv.stride)
        size = conv.mask.shape[:0:-1]  # (w, h)
        inside = ((cells > -1) & (cells < size)).all(axis=1)
        cells, modulation = cells[inside], modulation[inside]
        x, y = np.rint(cells).astype(int).clip(0, np.array(size) - 1).T
        offset, mask = conv.offset[:, :, y, x].transpose(2, 0, 1), conv.mask[:, y, x].T
        reads = cells[:, None] * conv.stride + conv.taps + offset  # [P, K, 2]
        places = reads.reshape(-1, 2) * conv.in_stride + 0.5
        modulation = (modulation[:, None] * mask).ravel()
    return places, modulation


def bins_of(roi: np.ndarray, offset: np.ndarray, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """The bins of a RoI [4] and where offsets [2, P, P] (x first) move them: two times boxes [P * P, 4], row by row."""
    size = offset.shape[-1]
    extent = roi[2:] - roi[:2]
    corner = roi[:2] + np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1) * extent / size  # [P, P, 2]
    moved = corner + gamma * extent * offset.transpose(1, 2, 0)
    bins, moved = (np.concatenate([c, c + extent / size], axis=-1).reshape(-1, 4) for c in (corner, moved))
    return bins, moved


def draw_points(
    image: np.ndarray, places: np.ndarray, modulation: np.ndarray, point: Sequence[float], layers: Sequence[str]
) -> np.ndarray:
    """Draw sampling places from blue for the least modulation to red for the most, and the point in magenta.

    All are in pixels of the image; what lies outside of it is left out. layers: the names of the convolutions on the
    way. Returns the picture under a line of text.
    """
    view = _view(image, np.array([0, 0, *image.shape[1::-1]]))
    inside = ((places >= 0) & (places < image.shape[1::-1])).all(axis=1)
    places, modulation = places[inside], modulation[inside]
    colours = _colours(modulation ** (1 / len(layers)))
    for k in np.argsort(modulation, kind="stable"):
        view.dot(places[k], 3, colours[k])
    view.dot(np.asarray(point), 7, MAGENTA)
    text = f"{len(places)} samples through {layers[-1]} and {len(layers) - 1} before it; {_range(modulation)}"
    return titled(view.canvas, text)


def draw_bins(
    image: np.ndarray, bins: np.ndarray, moved: np.ndarray, mask: np.ndarray, detection: np.ndarray
) -> np.ndarray:
    """Draw a RoI's bins in white, the moved ones from blue for a low mask to red for a high one, the detection magenta.

    All boxes are in pixels of the image. Returns the surroundings of the RoI, enlarged, under a line of text.
    """
    both = np.concatenate([bins, detection[None]])
    around = np.concatenate([both.min(axis=0)[:2], both.max(axis=0)[2:]])
    view = _view(image, around + np.array([-0.5, -0.5, 0.5, 0.5]) * np.tile(around[2:] - around[:2], 2))
    for thickness, colour in ((3, BLACK), (1, WHITE)):
        for box in bins:
            view.box(box, thickness, colour)
    colours = _colours(mask)
    for k in np.argsort(mask, kind="stable"):
        view.box(moved[k], 2, colours[k])
    view.box(detection, 4, MAGENTA)
    return titled(view.canvas, f"bins (white), moved bins, detection (magenta); {_range(mask)}")


class _View(NamedTuple):
    """A part of an image, scaled to be drawn on."""

    canvas: np.ndarray
    origin: np.ndarray  # [2] (x, y), where it begins in the image
    zoom: np.ndarray  # [2] (x, y)

    def dot(self, point: np.ndarray, radius: int, colour: Colour) -> None:
        x, y = np.floor((point - self.origin) * self.zoom).astype(int).tolist()
        cv2.circle(self.canvas, (x, y), radius + 1, BLACK, cv2.FILLED)
        cv2.circle(self.canvas, (x, y), radius, colour, cv2.FILLED)

    def box(self, box: np.ndarray, thickness: int, colour: Colour) -> None:
        corners = (box.reshape(2, 2) - self.origin) * self.zoom
        corners = corners.clip(-9, np.array(self.canvas.shape[1::-1]) + 9)  # OpenCV wraps around far outside
        cv2.rectangle(self.canvas, *np.rint(corners).astype(int).tolist(), colour, thickness)


def _view(image: np.ndarray, box: np.ndarray) -> _View:
    """The pixels that a box touches, scaled until their long side is SIDE."""
    size = np.array(image.shape[1::-1])
    x1, y1 = origin = np.floor(box[:2]).clip(0, size - 1).astype(int)
    x2, y2 = np.ceil(box[2:]).clip(origin + 1, size).astype(int)
    part = image[y1:y2, x1:x2]
    factor = SIDE / max(part.shape[:2])
    interpolation = cv2.INTER_LINEAR if factor > 1 else cv2.INTER_AREA
    size = np.rint(factor * (np.array([x2, y2]) - origin)).astype(int).clip(1)
    return _View(cv2.resize(part, size.tolist(), interpolation=interpolation), origin, size / part.shape[1::-1])


def _stacked_convs(parts: Mapping[str, nn.Layer], stage: int | None) -> list[str]:
    """The names of the last deformable convolutions of a stage, or of all; they follow each other in the network."""
    names = [name for name, layer in parts.items() if isinstance(layer, DeformConv2D)]
    chosen = [name for name in names if stage is None or f".res{stage}." in name]
    if names and not chosen:
        stages = sorted({name.split(".")[1] for name in names})
        raise UserError(f"--stage {stage} has no deformable convolutions; they are in {', '.join(stages)}")
    return chosen[-LEVELS:]


def _conv_samples(layer: DeformConv2D, x: paddle.Tensor, image_width: int) -> ConvSamples:
    """image_width is that of the batch, a multiple of every stride."""
    offset, mask = layer.offsets(x)
    kernel, (h, w) = layer.weight.shape[2], offset.shape[2:]
    first = offset[0, : 2 * kernel**2].numpy().reshape(-1, 2, h, w)[:, ::-1]
    return ConvSamples(
        first,
        np.ones((kernel**2, h, w)) if mask is None else mask[0, : kernel**2].numpy(),
        np.indices((kernel, kernel)).reshape(2, -1).T[:, ::-1] * layer.dilation - layer.padding,
        layer.stride,
        image_width // x.shape[3],
    )


def _rois_of(
    found: ImageDetections, model: FasterRCNN, calls: Mapping[str, tuple[Any, ...]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The RoIs [D, 4] that became detections, known by their scores, with offsets [D, 2, P, P] and masks [D, P, P]."""
    scores = F.softmax(model.predictor(*calls["predictor"]).logits, axis=1).numpy()
    rows = [np.abs(scores[:, k] - score).argmin() for k, score in zip(found.classes, found.scores, strict=True)]
    features, rois, *_ = calls["roi_pool"]
    offset, mask = model.roi_pool.offsets(features, rois)
    mask = paddle.ones_like(offset[:, :1]) if mask is None else mask
    return rois.boxes.numpy()[rows], offset.numpy()[rows], mask.numpy()[rows, 0]


def _colours(values: np.ndarray) -> list[Colour]:
    """RGB from blue for the least to red for the most; red if all are equal."""
    most = values.max(initial=0)
    share = 1 - (most - values) / max(most - values.min(initial=most), 1e-9)
    levels = np.rint(25 + 205 * share).astype(np.uint8).reshape(-1, 1)  # the ends of the colour map are too dark
    return [tuple(colour) for colour in cv2.applyColorMap(levels, cv2.COLORMAP_TURBO).reshape(-1, 3)[:, ::-1].tolist()]


def _range(mask: np.ndarray) -> str:
    most = mask.max(initial=0)
    least = mask.min(initial=most)
    return f"mask {least:.2g} (blue) to {most:.2g} (red)" if least < most else f"mask {most:.2g}"
