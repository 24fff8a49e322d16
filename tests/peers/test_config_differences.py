"""Converted configs: every setting that decides about the numbers of a detector is that of the other project."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ppdet_lite.assembly.setup import peer_config
from ppdet_lite.peers.config_differences import DIFFERENCES

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
R50_FPN = "faster_rcnn/faster_rcnn_r50_fpn_1x_coco"
CASCADE = "cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco"
SECTIONS = ("data.preprocess", "model.rpn", "model.roi_pool", "model.predictor", "model.postprocess")
NOT_COMPARED = ("model.rpn.matcher", "model.rpn.sampler")  # of training alone, and the same in all of them

# What the five have in common for a ResNet 50 with FPN. Sources: detectron2's config/defaults.py and
# Base-RCNN-FPN.yaml; mmdetection's _base_/models/faster-rcnn_r50_fpn.py; torchvision's models/detection/faster_rcnn.py
# and transform.py; PaddleDetection's faster_rcnn/_base_/faster_rcnn_r50_fpn.yml and faster_fpn_reader.yml.
COMMON = {
    "data.preprocess.short_side": 800,
    "data.preprocess.long_side": 1333,
    "data.preprocess.mean": [0.485, 0.456, 0.406],
    "data.preprocess.std": [0.229, 0.224, 0.225],
    "data.preprocess.stride": 32,
    "data.preprocess.channels": "rgb",
    "data.preprocess.pixel_range": 1,
    "data.preprocess.interpolation": "linear",
    "data.preprocess.resize_in": "uint8",
    "model.rpn.anchors.sizes": [32, 64, 128, 256, 512],
    "model.rpn.anchors.ratios": [0.5, 1.0, 2.0],
    "model.rpn.anchors.offset": 0.0,
    "model.rpn.anchors.rounded": False,
    "model.rpn.anchors.measured_strides": False,
    "model.rpn.nms_iou": 0.7,
    "model.rpn.pre_nms_train": 2000,
    "model.rpn.post_nms_train": 1000,
    "model.rpn.pre_nms_test": 1000,
    "model.rpn.post_nms_test": 1000,
    "model.rpn.train_limit_over": "image",
    "model.rpn.min_size": 0.0,
    "model.rpn.delta_weights": [1.0, 1.0, 1.0, 1.0],
    "model.rpn.box_loss": "l1",
    "model.rpn.beta": 1 / 9,
    "model.rpn.convs": 1,
    "model.roi_pool.type": "RoIAlign",
    "model.roi_pool.output_size": 7,
    "model.roi_pool.sampling_ratio": 0,
    "model.roi_pool.aligned": True,
    "model.roi_pool.levels": 4,
    "model.roi_pool.canonical_size": 224.0,
    "model.roi_pool.canonical_stride": 16,
    "model.predictor.class_agnostic": False,
    "model.predictor.delta_weights": [10.0, 10.0, 5.0, 5.0],
    "model.predictor.box_loss": "l1",
    "model.predictor.beta": 1 / 9,
    "model.postprocess.score_threshold": 0.05,
    "model.postprocess.nms_iou": 0.5,
    "model.postprocess.max_detections": 100,
    "model.backbone.variant": "b",
    "model.backbone.project_stage_2": False,
}
CAFFE = {  # ResNets of Caffe: BGR pixels of 0..255 minus a mean, and strides in the first 1x1 convolutions
    "data.preprocess.channels": "bgr",
    "data.preprocess.pixel_range": 255,
    "data.preprocess.mean": [103.53, 116.28, 123.675],
    "data.preprocess.std": [1, 1, 1],
    "model.backbone.variant": "a",
}
PROJECTS = {
    "ppdet": {
        "data.preprocess.sizing": "unrounded",
        "data.preprocess.interpolation": "cubic",
        "model.rpn.min_size": 1.0,
        "model.rpn.train_limit_over": "batch",
    },
    "torchvision": {
        "data.preprocess.sizing": "floor",
        "data.preprocess.resize_in": "float",
        "model.rpn.anchors.rounded": True,
        "model.rpn.anchors.measured_strides": True,
        "model.rpn.min_size": 0.001,
        "model.rpn.post_nms_train": 2000,
        "model.rpn.box_loss": "smooth_l1",
        "model.roi_pool.sampling_ratio": 2,
        "model.roi_pool.aligned": False,
        "model.predictor.box_loss": "smooth_l1",
    },
    "mmdet": {"data.preprocess.sizing": "nearest"},  # mmcv's rescale_size: int(side * scale + 0.5)
    "mmdet-caffe": {"data.preprocess.sizing": "nearest", **CAFFE},
    "detectron2": {"data.preprocess.sizing": "nearest", "data.preprocess.interpolation": "antialias", **CAFFE},
}


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all leaves of nested mappings by their dotted paths."""
    leaves = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def converted(peer: str, config: str, *overrides: str) -> dict[str, Any]:
    return flat(peer_config(CONFIGS / f"{config}.yml", peer, overrides))


@pytest.mark.parametrize("peer", DIFFERENCES)
def test_all_settings_of_a_converted_config_are_those_of_the_project(peer: str) -> None:
    expected = COMMON | PROJECTS[peer]
    found = converted(peer, R50_FPN)
    compared = [name for name in found if name.startswith(SECTIONS) and not name.startswith(NOT_COMPARED)]
    assert sorted({*compared, "model.backbone.variant", "model.backbone.project_stage_2"}) == sorted(expected)
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("peer", DIFFERENCES)
def test_no_project_ignores_boxes_inside_crowd_regions(peer: str) -> None:
    """detectron2's data/dataset_mapper.py, PaddleDetection's data/source/coco.py (load_crowd: False) and torchvision's
    references/detection/coco_utils.py drop crowd regions; mmdetection's assigners have ignore_iof_thr=-1."""
    names = [f"model.{part}.matcher.crowd_coverage" for part in ("rpn", "roi_sampler")]
    found = converted(peer, R50_FPN)
    assert [found[name] for name in names] == [None, None]
    assert converted(peer, R50_FPN, f"{names[0]}=0.7")[names[0]] == 0.7  # the user's wins


@pytest.mark.parametrize(
    ("peer", "config", "overrides", "expected"),
    [
        (
            "ppdet",
            "faster_rcnn/faster_rcnn_r50_1x_coco",  # C4
            [],
            {"data.preprocess.stride": 1, "model.rpn.train_limit_over": "image"},
        ),
        ("ppdet", "faster_rcnn/faster_rcnn_r18_fpn_1x_coco", [], {"model.backbone.project_stage_2": True}),
        ("mmdet", "dpool/faster_rcnn_r50_fpn_mdpool_1x_coco", [], {"model.roi_pool.per_level": True}),
        ("ppdet", "dpool/faster_rcnn_r50_fpn_mdpool_1x_coco", [], {"model.roi_pool.per_level": False}),
        (
            "detectron2",
            "faster_rcnn/faster_rcnn_r50_1x_coco",
            [],
            {"data.preprocess.stride": 1, "model.backbone.variant": "a", "model.box_head.variant": "a"},
        ),
        (
            "detectron2",
            "faster_rcnn/faster_rcnn_r50_dc5_1x_coco",
            [],
            {"data.preprocess.stride": 1, "model.backbone.out_stages": [5], "model.neck": None},
        ),
        (
            "detectron2",
            R50_FPN,
            ["model.backbone={depth: 101, groups: 32, base_width: 8}"],  # ResNeXt
            {"model.backbone.variant": "b", "data.preprocess.std": [57.375, 57.12, 58.395]},
        ),
        ("mmdet", R50_FPN, ["data.preprocess.sizing=exact"], {"data.preprocess.sizing": "exact"}),  # the user's wins
        ("ppdet", CASCADE, [], {"model.average": "probabilities", "model.stage_rois": "all"}),
        (
            "mmdet",  # _base_/models/cascade-rcnn_r50_fpn.py and models/roi_heads/cascade_roi_head.py
            CASCADE,
            [],
            {
                "model.average": "logits",
                "model.stage_rois": "resampled",
                "model.predictor.box_loss": "smooth_l1",
                "model.predictor.beta": 1.0,
                "model.rpn.box_loss": "smooth_l1",
                "model.rpn.beta": 1 / 9,
                "model.rpn.post_nms_train": 2000,
            },
        ),
    ],
)
def test_settings_that_depend_on_the_model(
    peer: str, config: str, overrides: list[str], expected: dict[str, Any]
) -> None:
    found = converted(peer, config, *overrides)
    assert {name: found[name] for name in expected} == expected


def test_stages_of_mmdetections_cascade() -> None:
    """The standard deviations of its third stage are rounded: 0.033 and 0.067 instead of 1/30 and 1/15."""
    stages = peer_config(CONFIGS / f"{CASCADE}.yml", "mmdet")["model"]["stages"]
    assert [stage["foreground_iou"] for stage in stages] == [0.5, 0.6, 0.7]
    assert [stage["loss_weight"] for stage in stages] == [1.0, 0.5, 0.25]
    deviations = [0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]
    for stage, expected in zip(stages, deviations, strict=True):
        assert [1 / weight for weight in stage["delta_weights"]] == pytest.approx(expected, rel=1e-12)
    one = peer_config(
        CONFIGS / f"{CASCADE}.yml",
        "mmdet",
        ["model.stages=[{foreground_iou: 0.5, delta_weights: [1, 1, 1, 1], loss_weight: 1.0}]"],
    )
    assert len(one["model"]["stages"]) == 1
