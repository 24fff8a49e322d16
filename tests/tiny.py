"""A detector small enough to run in a test, what to feed it, and overlaps pair by pair to check it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import paddle

from ppdet_lite.modeling.anchors import AnchorGenerator
from ppdet_lite.modeling.box_head import BoxPredictor, TwoFCHead
from ppdet_lite.modeling.cascade import STAGES, CascadeRCNN, EarlierStage
from ppdet_lite.modeling.components import RoIPool
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.fpn import FPN
from ppdet_lite.modeling.matching import Sampler
from ppdet_lite.modeling.mimic import RCNNTeacher
from ppdet_lite.modeling.norm import NormName
from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.modeling.roi_pool import DeformRoIPool, RoIAlign
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.modeling.rpn import RPN
from ppdet_lite.structures import Rois, Targets

NUM_CLASSES = 3
HEIGHT, WIDTH = 64, 96


def detector(
    norm: NormName = "gn",
    frozen_stages: int = 0,
    class_agnostic: bool = False,
    seed: int = 0,
    pool: Literal["align", "plain", "modulated"] = "align",
    mimic: Mapping[str, Any] | None = None,
    cascade: Mapping[str, Any] | None = None,
) -> FasterRCNN:
    """Faster R-CNN R18-FPN with 32 channels, a head of width 64 and three classes.

    pool: RoIAlign or one of the deformable poolings; mimic: the arguments of an R-CNN teacher; cascade: arguments of a
    Cascade R-CNN, which is class-agnostic.
    """
    paddle.seed(seed)
    backbone = ResNet(18, norm=norm, frozen_stages=frozen_stages)
    neck = FPN(backbone.out_channels, backbone.out_strides, out_channels=32)
    rpn = RPN(
        neck.out_channels,
        neck.out_strides,
        anchors=AnchorGenerator(sizes=(8, 16, 32, 64, 128)),
        sampler=Sampler(256, 0.5),
        pre_nms_train=100,
        post_nms_train=50,
        pre_nms_test=100,
        post_nms_test=20,
    )

    def head() -> tuple[RoIPool, TwoFCHead, BoxPredictor]:
        roi_pool = RoIAlign(neck.out_strides, output_size=3)
        if pool != "align":
            roi_pool = DeformRoIPool(
                neck.out_strides, neck.out_channels, modulated=pool == "modulated", hidden=32, output_size=3
            )
        agnostic = class_agnostic or cascade is not None
        return roi_pool, TwoFCHead(neck.out_channels, 3, width=64), BoxPredictor(64, NUM_CLASSES, agnostic)

    parts = (
        backbone,
        neck,
        rpn,
        *head(),
        RoISampler(sampler=Sampler(16, 0.25)),
        Postprocess(score_threshold=0.01, max_detections=30),
        None if mimic is None else RCNNTeacher(64, NUM_CLASSES, **mimic),
    )
    if cascade is None:
        return FasterRCNN(*parts)
    earlier = [EarlierStage(*head()) for _ in cascade.get("stages", STAGES)[1:]]
    return CascadeRCNN(*parts, earlier=earlier, **cascade)


def boxes(*rows: Sequence[float]) -> paddle.Tensor:
    """Rows [x1, y1, x2, y2] as a tensor [B, 4]; no rows make [0, 4]."""
    return paddle.to_tensor(np.array(rows, np.float32).reshape(-1, 4))


def rois(*images: Sequence[Sequence[float]]) -> Rois:
    """The boxes of each image, packed."""
    return Rois(boxes(*(row for image in images for row in image)), int32([len(image) for image in images]))


def targets(
    rows: Sequence[Sequence[float]] = (), classes: Sequence[int] | None = None, crowd: Sequence[bool] | None = None
) -> Targets:
    """One image's ground truth; class 0 and no crowds unless said otherwise; a crowd's class is not looked at."""
    crowd = [False] * len(rows) if crowd is None else crowd
    classes = [0] * len(rows) if classes is None else classes
    objects = [i for i, is_crowd in enumerate(crowd) if not is_crowd]
    crowds = boxes(*(row for row, is_crowd in zip(rows, crowd, strict=True) if is_crowd))
    return Targets(boxes(*(rows[i] for i in objects)), int64([classes[i] for i in objects]), crowds)


def int32(values: Sequence[int]) -> paddle.Tensor:
    """Whole numbers [B] as Paddle's RoI operators count."""
    return paddle.to_tensor(np.array(values, np.int32))


def int64(values: Sequence[int]) -> paddle.Tensor:
    """Whole numbers [B] as indices and classes are kept."""
    return paddle.to_tensor(np.array(values, np.int64))


def float32(values: Any) -> paddle.Tensor:
    """An array of any shape."""
    return paddle.to_tensor(np.array(values, np.float32))


def random_boxes(rng: np.random.Generator, count: int, size: float = 100.0, least: float = 1.0) -> np.ndarray:
    """Boxes [count, 4] with a width and height from `least` to half of `size`, inside a square of `size`."""
    extent = rng.uniform(least, size / 2, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (size - extent)
    return np.concatenate([corner, corner + extent], axis=1).astype(np.float32)


def slow_crop(image: np.ndarray, box: Sequence[float], size: int) -> np.ndarray:
    """Crop and resize, pixel by pixel, each from the four around its place; the border goes on for ever."""
    channels, height, width = image.shape
    x1, y1, x2, y2 = np.asarray(box, np.float64)
    patch = np.zeros((channels, size, size))
    for i in range(size):
        for j in range(size):
            y = min(max(y1 + (i + 0.5) / size * (y2 - y1) - 0.5, 0), height - 1)
            x = min(max(x1 + (j + 0.5) / size * (x2 - x1) - 0.5, 0), width - 1)
            top, left = math.floor(y), math.floor(x)
            for row, row_weight in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
                for column, weight in ((left, 1 - (x - left)), (min(left + 1, width - 1), x - left)):
                    patch[:, i, j] += row_weight * weight * image[:, row, column]
    return patch


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Area that two boxes share."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return float(width * height) if width > 0 and height > 0 else 0.0


def area(box: Sequence[float]) -> float:
    """Width times height."""
    return float((box[2] - box[0]) * (box[3] - box[1]))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Shared area over the area of both; 0 where that is 0."""
    union = area(a) + area(b) - overlap(a, b)
    return overlap(a, b) / union if union > 0 else 0.0


def batch(seed: int = 0) -> dict[str, Any]:
    """A batch as the loader makes it: two images, the second smaller than the batch, mirrored and without objects."""
    rng = np.random.default_rng(seed)
    return {
        "images": rng.standard_normal((2, 3, HEIGHT, WIDTH)).astype(np.float32),
        "image_sizes": np.array([[64, 96], [50, 70]], np.float32),
        "original_sizes": np.array([[128, 192], [25, 70]], np.float32),
        "scales": np.array([[0.5, 0.5], [2.0, 1.0]], np.float32),
        "image_ids": np.array([11, 12]),
        "original_images": [rng.standard_normal((3, *size)).astype(np.float32) for size in ((128, 192), (25, 70))],
        "flipped": np.array([False, True]),
        "targets": [
            {
                "boxes": np.array([[5, 5, 40, 40], [50, 10, 90, 60]], np.float32),
                "classes": np.array([0, 2]),
                "is_crowd": np.array([False, False]),
            },
            {"boxes": np.zeros([0, 4], np.float32), "classes": np.zeros(0, int), "is_crowd": np.zeros(0, bool)},
        ],
    }
