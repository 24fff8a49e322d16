"""Detection over batches of network input, with one result per image."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn

from ppdet_lite.data.loading.transforms import Batch, flip_boxes
from ppdet_lite.modeling.amp import Precision, bfloat16_layers
from ppdet_lite.modeling.faster_rcnn import FasterRCNN

Network = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A function that detects objects in network input, such as a `Predictor`; see `TrainedNetwork.__call__`."""


class ImageDetections(NamedTuple):
    """The detections of one image; D = 0 is legal."""

    image_id: int
    boxes: np.ndarray  # [D, 4] float32 xyxy, original pixels
    scores: np.ndarray  # [D] float32, descending
    classes: np.ndarray  # [D] int64, 0..K-1

    def above(self, score: float) -> "ImageDetections":
        """Return the detections with at least this score."""
        good = self.scores >= score
        return ImageDetections(self.image_id, self.boxes[good], self.scores[good], self.classes[good])


class TrainedNetwork:
    """A model as a `Network`. A call runs in evaluation mode and then restores the model's mode.

    precision: of convolutions and linear layers, see `modeling.amp`.
    """

    def __init__(self, model: FasterRCNN, precision: Precision = "float32") -> None:
        self.model, self.precision = model, precision

    def __call__(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        scales: np.ndarray,
        original_sizes: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return detections, rows [M, 6], and the number of rows of each image, [N] int32.

        images [N, 3, H, W], image_sizes [N, 2] (h, w) before padding, scales [N, 2] (y, x) resized / original,
        original_sizes [N, 2] (h, w), to which boxes are clipped (None: image_sizes / scales, rounded); float32.
        A row is class, score, x1, y1, x2, y2, in original pixels. Rows are ordered by image, then by descending score.
        """
        known_sizes = None if original_sizes is None else paddle.to_tensor(original_sizes)
        with evaluation_mode(self.model), bfloat16_layers(self.model, self.precision), paddle.no_grad():
            tensors = map(paddle.to_tensor, (images, image_sizes, scales))
            detections = self.model(*tensors, original_sizes=known_sizes)
        columns = [detections.classes.numpy()[:, None], detections.scores.numpy()[:, None], detections.boxes.numpy()]
        return np.concatenate(columns, axis=1, dtype=np.float32), detections.counts.numpy()


@contextlib.contextmanager
def evaluation_mode(model: nn.Layer) -> Iterator[None]:
    """Put a model into evaluation mode inside the block; restore the mode of each layer afterwards."""
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


def detect(network: Network, batches: Iterable[Batch]) -> Iterator[ImageDetections]:
    """Yield the detections of every image in order. Boxes of flipped images are flipped back."""
    for batch in batches:
        rows, counts = network(*(batch[key] for key in ("images", "image_sizes", "scales", "original_sizes")))
        parts = np.split(rows, np.cumsum(counts)[:-1])
        for i in np.flatnonzero(batch["flipped"]) if "flipped" in batch else ():
            boxes = flip_boxes(parts[i][:, 2:], batch["original_sizes"][i, 1])
            parts[i] = np.concatenate([parts[i][:, :2], boxes], axis=1)
        for image_id, part in zip(batch["image_ids"].tolist(), parts, strict=True):
            yield ImageDetections(image_id, part[:, 2:], part[:, 1], part[:, 0].astype(np.int64))
