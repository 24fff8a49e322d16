"""A model over batches of images: the detections of each."""

import contextlib
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn

from ppdet_lite.assembly.tensors import detection_arguments
from ppdet_lite.core.log import format_eta, get_logger
from ppdet_lite.data.transforms import Batch, flip_boxes
from ppdet_lite.modeling.faster_rcnn import FasterRCNN

TELL_EVERY = 10.0  # seconds between two lines about the progress


class ImageDetections(NamedTuple):
    """What was found in one image; D = 0 is legal."""

    image_id: int
    boxes: np.ndarray  # [D, 4] float32 xyxy, original pixels
    scores: np.ndarray  # [D] float32, descending
    classes: np.ndarray  # [D] int64, 0..K-1


@contextlib.contextmanager
def evaluation_mode(model: nn.Layer) -> Iterator[None]:
    """Have a model in evaluation mode; in the end each layer returns to the mode it was in."""
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def detect(model: FasterRCNN, batches: Iterable[Batch]) -> Iterator[ImageDetections]:
    """Yield the detections of every image of the batches, in their order, those of mirrored ones mirrored back.

    The model is in evaluation mode meanwhile.
    """
    with evaluation_mode(model):
        for batch in batches:
            with paddle.no_grad():
                found = model(*detection_arguments(batch))
            ends = np.cumsum(found.counts.numpy())[:-1]
            boxes, scores, classes = (np.split(part.numpy(), ends) for part in found[:3])
            for i in np.flatnonzero(batch["flipped"]) if "flipped" in batch else ():
                width = batch["image_sizes"][i, 1] / batch["scales"][i, 1]
                boxes[i] = flip_boxes(boxes[i], width)
                boxes[i][:, ::2] = boxes[i][:, ::2].clip(0, np.floor(width + 0.5))  # the model's limit
            yield from map(ImageDetections, batch["image_ids"].tolist(), boxes, scores, classes)


def in_order(found: Iterable[ImageDetections], image_ids: Iterable[int]) -> Iterator[ImageDetections]:
    """Put detections, of each of the images once, into the order of the images."""
    early: dict[int, ImageDetections] = {}
    stream = iter(found)
    for image_id in image_ids:
        while image_id not in early:
            image = next(stream)
            early[image.image_id] = image
        yield early.pop(image_id)


def tell_progress(found: Iterator[ImageDetections], total: int) -> Iterator[ImageDetections]:
    """Pass detections on, logging now and then how many of `total` images are done and how long the rest takes."""
    began = told = time.perf_counter()
    for count, image in enumerate(found, start=1):
        yield image
        now = time.perf_counter()
        if now - told >= TELL_EVERY:
            told, rate = now, count / (now - began)
            get_logger().info(
                "image %d/%d  eta %s  %.2f images/s", count, total, format_eta((total - count) / rate), rate
            )
