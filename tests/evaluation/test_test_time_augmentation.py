"""Test-time augmentation: views are flipped back and merged, compared with results by hand."""

import json

import cv2
import numpy as np
import paddle
import pytest
from paddle import nn

from ppdet_lite.assembly.recipe import Evaluation
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.data.loading.transforms import Preprocess, collate, image_sample
from ppdet_lite.deployment.detect import ImageDetections, TrainedNetwork, detect
from ppdet_lite.evaluation.evaluate import evaluate
from ppdet_lite.evaluation.test_time_augmentation import make_views, merge_detections, merge_views
from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.structures import PackedDetections
from tests.tiny_run import as_detector

LOADER = Loader(batch_size=2, threads=1)


class Corner(nn.Layer):
    """Detects one box, the upper half of the lighter side. Its score grows with the width of the network input."""

    def __init__(self):
        super().__init__()
        self.postprocess = Postprocess()

    def forward(self, images, image_sizes, scales, original_sizes=None):
        half = image_sizes[:, 1:] / 2
        right = int(image_sizes[0, 1]) - 1
        left = (images[:, 0, 0, :1] > images[:, 0, 0, right : right + 1]).astype("float32")
        corners = [half * (1 - left), half * 0, half * (2 - left), image_sizes[:, :1] / 2]
        boxes = paddle.concat(corners, axis=1) / scales[:, 1:]
        count = images.shape[0]
        return PackedDetections(
            boxes, image_sizes[:, 1] / 1000, paddle.zeros([count], "int64"), paddle.ones([count], dtype="int32")
        )


def test_views_are_flipped_back_and_merged(tmp_path):
    """A light left half, at three sizes and flipped: six times the same box, of which the highest score is kept."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 255
    cv2.imwrite(str(tmp_path / "0.png"), pixels)
    content = {
        "images": [{"id": 4, "file_name": "0.png", "height": 20, "width": 40}],
        "categories": [{"id": 1, "name": "light"}],
        "annotations": [{"id": 1, "image_id": 4, "category_id": 1, "bbox": [0, 0, 20, 10], "area": 200, "iscrowd": 0}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    dataset = CocoDataset(str(tmp_path), str(tmp_path / "val.json"))
    how = Evaluation(short_sides=[20, 40, 10], flip=True)
    views = make_views(Preprocess(short_side=20, long_side=50), how)
    assert [(v.preprocess.short_side, v.preprocess.long_side, v.flipped) for v in views] == [
        (side, long, flipped) for side, long in ((20, 50), (40, 100), (10, 25)) for flipped in (False, True)
    ]
    batches = EvalBatches(dataset, views[0].preprocess, LOADER, views=views)
    each = list(detect(TrainedNetwork(Corner()), batches.iterate()))
    assert [image.boxes.tolist() for image in each] == [[[0, 0, 20, 10]]] * 6
    (image,) = merge_views(iter(each), 6, Postprocess())
    assert (image.boxes.tolist(), image.scores.tolist()) == ([[0, 0, 20, 10]], [pytest.approx(0.08)])
    metrics = evaluate(
        as_detector(Corner(), dataset, Preprocess(short_side=20, long_side=50)), dataset, LOADER, tmp_path, how
    )
    assert (metrics["detections"], metrics["AP50"]) == (1, pytest.approx(1.0))


def test_merging_is_nms_per_class_over_all_views_and_keeps_the_best():
    """Boxes of IoU 0.6 and 1/3: the first suppresses the second; the third and the other class are kept."""
    one = ImageDetections(5, np.float32([[0, 0, 8, 10], [0, 0, 8, 10]]), np.float32([0.9, 0.6]), np.array([0, 1]))
    two = ImageDetections(5, np.float32([[2, 0, 10, 10], [4, 0, 12, 10]]), np.float32([0.8, 0.7]), np.array([0, 0]))
    found = merge_detections([one, two], Postprocess(nms_iou=0.5))
    assert found.scores.tolist() == pytest.approx([0.9, 0.7, 0.6]) and found.classes.tolist() == [0, 0, 1]
    assert found.boxes[:, 0].tolist() == [0, 4, 0]
    best = merge_detections([one, two], Postprocess(nms_iou=0.5, max_detections=2))
    assert best.scores.tolist() == pytest.approx([0.9, 0.7])
    nothing = ImageDetections(5, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert merge_detections([nothing, nothing], Postprocess()).boxes.shape == (0, 4)
    assert merge_detections([nothing, one], Postprocess()).scores.tolist() == pytest.approx([0.9, 0.6])


def test_flipped_boxes_are_flipped_back_in_the_original_image():
    """41 columns at a scale of 2/3 are 27.33, of which the network gets 27: 40.5 columns."""

    class Right(nn.Layer):
        def forward(self, images, image_sizes, scales, original_sizes):
            return PackedDetections(
                paddle.to_tensor([[30.0, 0.0, 41.0, 30.0]]),
                paddle.to_tensor([0.9]),
                paddle.to_tensor([0]),
                paddle.to_tensor([1], dtype="int32"),
            )

    sample = image_sample(np.zeros((30, 41, 3), np.uint8), Preprocess(short_side=20, long_side=50), 1, flipped=True)
    (found,) = detect(TrainedNetwork(Right()), [collate([sample], Preprocess())])
    assert sample["image_size"].tolist() == [20, 27] and found.boxes.tolist() == [[0, 0, 11, 30]]
