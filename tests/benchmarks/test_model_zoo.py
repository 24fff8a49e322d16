"""The table of recipes: counts, published AP, and the page."""

from pathlib import Path

import paddle
import pytest
from paddle import nn

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.benchmarks import model_zoo
from ppdet_lite.benchmarks.model import random_model
from ppdet_lite.benchmarks.model_zoo import (
    Row,
    format_page,
    measure_rows,
    model_cost,
    multiply_adds,
    published_ap,
    published_weights,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_multiply_adds_of_a_layer() -> None:
    grouped = nn.Conv2D(8, 6, 3, padding=1, groups=2)
    assert multiply_adds(grouped, grouped(paddle.zeros([2, 8, 5, 7]))) == 2 * 6 * 5 * 7 * (4 * 9)
    linear = nn.Linear(10, 3)
    assert multiply_adds(linear, linear(paddle.zeros([4, 10]))) == 4 * 3 * 10


def test_the_cost_of_rois_is_counted_for_post_nms_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of multiply-adds grows in proportion to the number of RoIs."""
    monkeypatch.setattr(model_zoo, "COUNTED_SIZE", (64, 96))
    path = CONFIGS / "quickstart/shapes_r18_fpn.yml"
    few, many, none = (
        model_cost(load_config(path, [f"model.rpn.post_nms_test={count}", "model.box_head.width=64"]))
        for count in (10, 20, 1)
    )
    assert few[0] == many[0] and 11.2 < few[0] < 13
    per_roi = 64 * (49 * 64 + 64) + 64 * (81 + 320)  # two layers of 64, classes and boxes of 80 classes
    assert (many[1] - few[1]) * 1e9 == pytest.approx(10 * per_roi, rel=1e-6)
    assert (few[1] - none[1]) * 1e9 == pytest.approx(9 * per_roi, rel=1e-6)


def test_layers_on_whole_maps_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Position-sensitive pooling has convolutions over the map, and a head over RoIs."""
    monkeypatch.setattr(model_zoo, "COUNTED_SIZE", (64, 96))
    path = CONFIGS / "faster_rcnn/faster_rcnn_r50_dc5_1x_coco.yml"
    options = ["model.roi_pool={type: DeformPSRoIPool, out_channels: 8}", "model.box_head.width=64"]
    few, many = (  # both more than this image has anchors
        model_cost(load_config(path, [*options, f"model.rpn.post_nms_test={count}"]))[1] for count in (1000, 2000)
    )
    per_roi = 64 * (8 * 49 + 64) + 64 * (81 + 320)  # two layers of 64, classes and boxes of 80 classes
    assert (many - few) * 1e9 == pytest.approx(1000 * per_roi, rel=1e-6)


def test_published_ap_and_weights() -> None:
    recipe = CONFIGS / "dcn/faster_rcnn_dcn_r50_fpn_1x_coco.yml"
    assert published_ap(recipe) == "PaddleDetection 42.1, mmdetection 41.4"
    assert published_weights(recipe) == ["PaddleDetection", "mmdetection"]
    assert published_weights(CONFIGS / "faster_rcnn/faster_rcnn_r18_fpn_1x_coco.yml") == []
    x101 = CONFIGS / "faster_rcnn/faster_rcnn_x101_vd_64x4d_fpn_1x_coco.yml"
    assert published_weights(x101) == ["PaddleDetection", "mmdetection (with overrides)"]
    recipes = [path for path in CONFIGS.glob("*/*.yml") if path.parent.name not in ("_base_", "quickstart", "bccd")]
    assert all(published_ap(path) != "--" for path in recipes)


def test_a_row_and_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_zoo, "COUNTED_SIZE", (64, 96))
    monkeypatch.setattr(model_zoo, "TIMED_SIZE", (60, 90))
    path = CONFIGS / "quickstart/shapes_r18_fpn.yml"
    (row,) = measure_rows([path], CONFIGS, 1)
    assert row.recipe == "quickstart/shapes_r18_fpn.yml" and row.ap == "--" and row.weights == ""
    assert min(row.parameters, row.gmacs, row.step_seconds, row.detect_seconds) > 0
    lines = format_page([Row("a/b.yml", 41.75, 215.9, "theirs 40.1", "theirs", 1.234, 0.5)]).splitlines()
    assert lines[0] == "# Model zoo"
    assert lines[-1] == "| `a/b.yml` | 41.8 | 216 | theirs 40.1 | theirs | 1.23 | 0.50 |"


def test_deep_random_models_propose_as_many_boxes_as_shallow_ones() -> None:
    """With frozen norms, the boxes of a deep model would all be the image's border."""
    counts = []
    for depth in (18, 101):
        config = load_config(CONFIGS / "faster_rcnn/faster_rcnn_r50_fpn_1x_coco.yml", [f"model.backbone.depth={depth}"])
        model = random_model(config, model_zoo.CLASSES, for_training=False)
        model.eval()
        model.roi_pool.register_forward_pre_hook(lambda layer, inputs: counts.append(len(inputs[1].boxes)))
        with paddle.no_grad():
            model_zoo._detect(model, (64, 96))
    assert counts[1] > 0.8 * counts[0] > 100
