"""Boxes reach the borders of the original image and do not exceed them, for any size and `sizing`."""

from collections.abc import Callable

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from ppdet_lite.data.loading.transforms import Batch, Preprocess, collate, image_sample
from ppdet_lite.deployment.detect import ImageDetections, TrainedNetwork, detect
from ppdet_lite.deployment.export import Deployed
from ppdet_lite.deployment.graph_inputs import graph_inputs
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.structures import BoxHeadOutput, Rois

SIZINGS = ["exact", "unrounded", "nearest", "floor"]


class Part(nn.Layer):
    """A part of a detector, computed by a function, with any other attributes."""

    def __init__(self, function: Callable, **attributes: object) -> None:
        super().__init__()
        self.forward = function
        for name, value in attributes.items():
            setattr(self, name, value)


def whole_image_detector(clipped_to: list[Tensor]) -> FasterRCNN:
    """A detector with one RoI per image, the whole network input, from which it predicts a box three times as large.

    The sizes to which the RPN would clip its proposals are appended to `clipped_to`.
    """

    def propose(anchors: None, logits: None, deltas: None, image_sizes: Tensor) -> Rois:
        clipped_to.append(image_sizes)
        boxes = paddle.concat([paddle.zeros_like(image_sizes), image_sizes[:, ::-1]], axis=1)
        return Rois(boxes, paddle.ones([len(boxes)], dtype="int32"))

    def predict(embedding: Tensor) -> BoxHeadOutput:
        logits, deltas = (
            paddle.to_tensor([row] * len(embedding)) for row in ([9.0, 0.0], [0.0, 0.0, *[np.log(3)] * 2])
        )
        return BoxHeadOutput(embedding, logits, deltas.astype("float32"))

    return FasterRCNN(
        backbone=Part(lambda images: images),
        neck=Part(lambda maps: maps, rpn_features=lambda maps, features: maps),
        rpn=Part(lambda features: (None, None), make_anchors=lambda features: None, propose=propose),
        roi_pool=Part(lambda features, rois, finest: rois.boxes),
        box_head=Part(lambda pooled: pooled),
        predictor=Part(predict, delta_weights=(1.0, 1.0, 1.0, 1.0)),
    )


def exported(model: FasterRCNN, preprocess: Preprocess) -> Callable:
    """Return a function that computes what a predictor of the exported model does, without tracing it."""
    graph = Deployed(model, preprocess)

    def run(*arrays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        inputs = graph_inputs(*arrays, preprocess.stride)
        with paddle.no_grad():
            rows, counts = graph(*map(paddle.to_tensor, inputs.values()))
        return rows.numpy(), counts.numpy()

    return run


def boxes_of(results: list[ImageDetections]) -> list[list[float]]:
    return [image.boxes.tolist() for image in results]


def assert_whole(batch: Batch, preprocess: Preprocess, sizes: list[tuple[int, int]]) -> None:
    """Check that all boxes are the whole original images, trained and exported, and both RPNs clip to the same size."""
    clipped_to: list[Tensor] = []
    model = whole_image_detector(clipped_to)
    expected = [[[0, 0, width, height]] for height, width in sizes]
    for network in (TrainedNetwork(model), exported(model, preprocess)):
        assert boxes_of(detect(network, [batch])) == expected
    np.testing.assert_allclose(clipped_to[1], clipped_to[0], rtol=2e-7 if preprocess.sizing == "unrounded" else 0)
    np.testing.assert_array_equal(clipped_to[0], batch["image_sizes"])


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("sizing", SIZINGS)
def test_boxes_are_clipped_to_the_original_size(sizing: str, flipped: bool) -> None:
    """Of 200 sizes (h, w), among them 0.1 rows, which become one, and halves of a row, which are rounded to even."""
    preprocess = Preprocess(short_side=40, long_side=67, sizing=sizing)
    rng = np.random.default_rng(0)
    sizes = [(1, 700), (900, 1), (1, 1), (40, 67), (67, 40), (85, 80), (83, 80), (80, 85), (2000, 1999)]
    sizes += rng.integers(1, 900, (200 - len(sizes), 2)).tolist()
    samples = [image_sample(np.zeros((*size, 3), np.uint8), preprocess, i, flipped) for i, size in enumerate(sizes)]
    assert_whole(collate(samples, preprocess), preprocess, sizes)


@pytest.mark.parametrize("sizing", SIZINGS)
def test_a_photo_of_18_megapixels(sizing: str) -> None:
    """3456 x 5184 at 640 is 426.67 x 640; from 427 x 640, 3459 x 5184 was recovered."""
    preprocess = Preprocess(short_side=640, long_side=640, sizing=sizing)
    sample = image_sample(np.zeros((3456, 5184, 3), np.uint8), preprocess, 0)
    assert_whole(collate([sample], preprocess), preprocess, [(3456, 5184)])
