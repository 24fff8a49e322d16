"""Differences between other projects' models and this one's, as config overrides."""

import json
from collections.abc import Callable
from typing import Any

from ppdet_lite.config.checked_config import Config, to_plain

IN_ALL_PROJECTS = ["model.rpn.matcher.crowd_coverage=null", "model.roi_sampler.matcher.crowd_coverage=null"]
"""Overrides for what all projects do differently: none of them ignores boxes inside crowd regions."""


def _ppdet_differences(config: Config) -> list[str]:
    """PaddleDetection uses cubic interpolation, clips boxes to the size before rounding, and removes tiny proposals.

    It pads no images for C4, limits FPN proposals per batch, and has a projection in stage 2 of R18 and R34.
    """
    differences = ["data.preprocess={sizing: unrounded, interpolation: cubic}", "model.rpn.min_size=1.0"]
    if config["model"]["neck"] is None:
        differences.append("data.preprocess.stride=1")
    else:
        differences.append("model.rpn.train_limit_over=batch")
    if config["model"]["backbone"]["depth"] < 50:
        differences.append("model.backbone.project_stage_2=true")
    return differences


def _torchvision_differences(config: Config) -> list[str]:
    """torchvision resizes floating-point pixels, measures strides, rounds anchors and uses unaligned RoIAlign."""
    smooth = "{box_loss: smooth_l1, beta: 0.1111111111111111}"
    return [
        "data.preprocess={sizing: floor, resize_in: float}",
        "model.rpn={anchors: {rounded: true, measured_strides: true}, min_size: 0.001, post_nms_train: 2000}",
        "model.roi_pool={sampling_ratio: 2, aligned: false}",
        f"model.rpn={smooth}",
        f"model.predictor={smooth}",
    ]


def _mmdet_differences(config: Config) -> list[str]:
    """mmdetection rounds image sizes to nearest; its deformable RoI poolings have an offset branch per level.

    Its Cascade R-CNN averages logits, samples in every stage, and weighs losses and deltas differently.
    """
    differences = ["data.preprocess.sizing=nearest"]
    if config["model"]["roi_pool"]["type"] == "DeformRoIPool":
        differences.append("model.roi_pool.per_level=true")
    if config["model"].get("type") == "CascadeRCNN":
        differences.append(
            "model={average: logits, stage_rois: resampled, predictor: {box_loss: smooth_l1, beta: 1.0}}"
        )
        differences.append("model.rpn={box_loss: smooth_l1, beta: 0.1111111111111111}")
        differences.append(f"model.stages={json.dumps(_mmdet_stages(config))}")
    return differences


def _mmdet_stages(config: Config) -> list[dict[str, Any]]:
    """Return a cascade's stages with mmdetection's loss weights and its rounded standard deviations of the third."""
    stages = [dict(to_plain(stage)) for stage in config["model"]["stages"]]
    for stage, loss_weight in zip(stages, (1.0, 0.5, 0.25)):
        stage["loss_weight"] = loss_weight
    if len(stages) > 2:
        stages[2]["delta_weights"] = [1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067]
    return stages


CAFFE = "channels: bgr, pixel_range: 255, mean: [103.53, 116.28, 123.675]"


def _mmdet_caffe_differences(config: Config) -> list[str]:
    """mmdetection's `caffe` configs start from Caffe ResNets: BGR pixels, stride in the first 1x1 convolution."""
    return [*_mmdet_differences(config), f"data.preprocess={{{CAFFE}, std: [1, 1, 1]}}", "model.backbone.variant=a"]


def _detectron2_differences(config: Config) -> list[str]:
    """detectron2 resizes as Pillow does and pads images for FPN only. Its ResNets (not ResNeXts) come from Caffe."""
    is_resnext = config["model"]["backbone"]["groups"] > 1
    std = "[57.375, 57.12, 58.395]" if is_resnext else "[1, 1, 1]"
    differences = [f"data.preprocess={{sizing: nearest, interpolation: antialias, {CAFFE}, std: {std}}}"]
    differences += [] if is_resnext else ["model.backbone.variant=a"]
    if config["model"]["backbone"]["dilated"]:  # in its DC5, RPN and RoI pooling read stage 5 directly
        differences += ["model.backbone.out_stages=[5]", "model.neck=null"]
    if config["model"]["neck"] is None or config["model"]["backbone"]["dilated"]:
        differences.append("data.preprocess.stride=1")
    if config["model"]["box_head"]["type"] == "Res5Head":
        differences.append("model.box_head.variant=a")
    return differences


DIFFERENCES: dict[str, Callable[[Config], list[str]]] = {
    "ppdet": _ppdet_differences,
    "torchvision": _torchvision_differences,
    "mmdet": _mmdet_differences,
    "mmdet-caffe": _mmdet_caffe_differences,
    "detectron2": _detectron2_differences,
}
"""Per project: a function that returns the overrides with which a config computes the same as that project."""
