"""A dataset, a config and a checkpoint small enough for tests: three images of 64 to 128 pixels, two classes.

`small_shapes` is the quickstart's recipe made as small, for what trains.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import paddle
from paddle import nn

from ppdet_lite.assembly.setup import TrainedModel, build_model, load_config
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.data.synthetic.shapes import generate
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.storage.checkpoint import save_checkpoint
from ppdet_lite.storage.files import write_text
from ppdet_lite.structures import PackedDetections

SIZES = {7: (64, 96), 3: (96, 64), 12: (128, 100)}  # image id -> (h, w), in the file's order; ids not ascending
CATEGORIES = {5: "cat", 9: "dog"}
XYWH = {7: [(5, 10, 30, 40, 5), (50, 8, 20, 36, 9)], 3: [(10, 20, 40, 50, 9)], 12: []}  # the last is the category

CONFIG = """
model:
  type: FasterRCNN
  backbone: {{type: ResNet, depth: 18, norm: bn, frozen_stages: 0, out_stages: [2, 3, 4]}}
  neck: {{type: FPN, out_channels: 32}}
  rpn: {{anchors: {{sizes: [32, 64, 128, 256]}}, pre_nms_test: 50, post_nms_test: 20}}
  roi_pool: {{type: RoIAlign, levels: 3}}
  box_head: {{type: TwoFCHead, width: 64}}
  predictor: {{}}
data:
  train: {{images: {folder}/images, annotations: {folder}/train.json}}
  val: {{images: {folder}/images, annotations: {folder}/val.json}}
  preprocess: {{short_side: 64, long_side: 128}}
  loader: {{batch_size: 2, threads: 1}}
optimizer: {{type: SGD}}
schedule: {{type: CosineSchedule}}
train: {{length: 1 iterations}}
output: {folder}/output
"""


# Stage 5 has three quarters of the weights of a ResNet 18, which every run draws, saves and reads.
WITHOUT_STAGE_5 = [
    "model.backbone.out_stages=[2, 3, 4]",
    "model.rpn.anchors.sizes=[16, 32, 64, 128]",
    "model.roi_pool.levels=3",
]
QUICKSTART = Path(__file__).resolve().parents[1] / "configs/quickstart/shapes_r18_fpn.yml"


def small_shapes(folder: Path, train: int, val: int, seed: int = 1) -> list[str]:
    """Draw a few shapes; return the overrides under which QUICKSTART trains on them quickly."""
    generate(folder, train=train, val=val, seed=seed)
    return [
        f"data.train={{images: {folder}/train, annotations: {folder}/annotations/instances_train.json}}",
        f"data.val={{images: {folder}/val, annotations: {folder}/annotations/instances_val.json}}",
        "data.preprocess={short_side: 64, long_side: 96, stride: 32}",
        "data.loader.batch_size=1",
        *WITHOUT_STAGE_5,
        "model.neck.out_channels=32",
        "model.box_head.width=32",
        "schedule.warmup_iterations=2",
        "train.rehearse=false",  # a step more, and test_rehearsal.py shows that it changes nothing
    ]


def write_annotations(path: Path, categories: dict[int, str] = CATEGORIES, xywh: dict[int, list] = XYWH) -> Path:
    """Write a COCO file of the three images; each object is (x, y, w, h, category id)."""
    objects = [(image_id, item) for image_id, items in xywh.items() for item in items]
    content = {
        "images": [
            {"id": image_id, "file_name": f"{image_id}.png", "height": h, "width": w}
            for image_id, (h, w) in SIZES.items()
        ],
        "categories": [{"id": category_id, "name": name} for category_id, name in categories.items()],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": item[4],
                "bbox": list(item[:4]),
                "area": item[2] * item[3],
                "iscrowd": 0,
            }
            for number, (image_id, item) in enumerate(objects, start=1)
        ],
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_images(folder: Path) -> Path:
    """Write the three images, of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for image_id, size in SIZES.items():
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        (folder / f"{image_id}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return folder


def tiny_dataset(folder: Path, class_names: list[str] | None = None, **annotations: dict) -> CocoDataset:
    """Write the images and val.json below a folder and read them."""
    images, file = write_images(folder / "images"), write_annotations(folder / "val.json", **annotations)
    return CocoDataset(str(images), str(file), class_names=class_names)


def tiny_config(folder: Path) -> Path:
    """Write images, train.json, val.json and tiny.yml below a folder; return the config's path."""
    tiny_dataset(folder)
    write_annotations(folder / "train.json")
    path = folder / "tiny.yml"
    path.write_text(CONFIG.format(folder=folder), encoding="utf-8")
    return path


def tiny_checkpoint(folder: Path, class_names: list[str], category_ids: list[int], favorite: int = 0) -> Path:
    """Save a random model, made sure of one class, as the run's best checkpoint; return the run's folder."""
    config = load_config(tiny_config(folder))
    model = build_model(config, class_names)
    bias = np.full(len(class_names) + 1, -3.0, np.float32)
    bias[favorite] = 3.0
    model.predictor.classify.bias.set_value(bias)
    meta = {"class_names": class_names, "category_ids": category_ids}
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    save_checkpoint(folder / "run" / "checkpoints" / "best", {"model": arrays}, meta)
    return folder / "run"


def describe_tiny_run(run: Path, overrides: Sequence[str] = ()) -> Path:
    """Give the folder of `tiny_checkpoint` the config that a run has; return the folder."""
    write_text(run / "config.yml", load_config(run.parent / "tiny.yml", overrides).dump())
    return run


class Oracle(nn.Layer):
    """A detector that answers with what it was told, image after image, as `answers` = [(boxes, scores, classes)]."""

    def __init__(self, answers: list[tuple]) -> None:
        super().__init__()
        self.norm, self.postprocess = nn.BatchNorm2D(3), Postprocess()
        self.answers, self.calls = iter(answers), []

    def forward(self, images: paddle.Tensor, *_: paddle.Tensor, original_sizes: paddle.Tensor) -> PackedDetections:
        """Note how it was called; give the next N answers."""
        self.calls.append((list(images.shape), self.training, self.norm.training, paddle.is_grad_enabled()))
        parts = [next(self.answers) for _ in range(images.shape[0])]
        boxes, scores, classes = (
            np.concatenate([np.asarray(part[i], dtype).reshape(shape) for part in parts])
            for i, (dtype, shape) in enumerate([("float32", (-1, 4)), ("float32", (-1,)), ("int64", (-1,))])
        )
        counts = np.array([len(part[0]) for part in parts], np.int32)
        return PackedDetections(*(paddle.to_tensor(part) for part in (boxes, scores, classes, counts)))


def perfect_answers(dataset: CocoDataset) -> list[tuple]:
    """The dataset's own objects as answers, all with score 0.9."""
    objects = [dataset.annotations(index) for index in range(len(dataset))]
    return [(item.boxes, np.full(len(item.boxes), 0.9), item.classes) for item in objects]


def as_detector(model: nn.Layer, dataset: CocoDataset, preprocess: Preprocess) -> Detector:
    """A detector of the dataset's classes around any model."""
    classes = dataset.class_names, dataset.category_ids.tolist()
    return Detector.from_trained(TrainedModel(model, *classes, preprocess, "a test"))
