"""Values that are valid by themselves and impossible together: one line with the place of the key to change."""

import inspect
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.config import registry
from ppdet_lite.core.errors import UserError
from tests.assembly.test_setup import CLASSES, CONFIG


@pytest.fixture(autouse=True)
def file(tmp_path: Path) -> None:
    (tmp_path / "tiny.yml").write_text(CONFIG.format(folder=tmp_path), encoding="utf-8")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.neck={norm: gn, out_channels: 48}"], "model.neck.norm: gn has 32 groups: the number of channels must"),
        (
            ["model.rpn.matcher={foreground_iou: 0.3, background_iou: 0.7}"],
            "model.rpn.matcher.background_iou: 0.7 is above foreground_iou 0.3",
        ),
        (["model.rpn.anchors.sizes=[32, 64, 128, 256, 512]"], "model.rpn.anchors.sizes: 5 anchor sizes for 3 pyramid"),
        (["model.roi_pool.levels=4"], "model.roi_pool.levels: 4 levels, but the neck has 3"),
        (["model.backbone.out_stages=[2, 4]"], "model.neck.type: FPN needs each stride to be twice the one before"),
        (["model.backbone.out_stages=[4, 3]"], "model.backbone.out_stages: expected ascending stages"),
        (["model.backbone.norm=none"], "model.backbone.norm: a ResNet without norms cannot be trained"),
        (["model.backbone.frozen_stages=5"], "model.backbone.frozen_stages: 5 includes stages that are not built"),
        (["model.backbone.stage_lr=[1, 1, 1, 0.1]"], "model.backbone.stage_lr: has rates of stages that are not built"),
        (["model.predictor.beta=0.5"], "model.predictor.beta: 0.5 has no effect with box_loss l1"),
        (["model.rpn={box_loss: l1, beta: 1.0}"], "model.rpn.beta: 1 has no effect with box_loss l1"),
        (["model.backbone.dilated=true"], "model.backbone.dilated: applies to stage 5"),
        (["model.backbone.groups=2"], "model.backbone.groups: applies to bottleneck blocks only"),
        (["model.backbone.base_width=4"], "model.backbone.base_width: applies to bottleneck blocks only"),
        (["model.backbone.deformable={stages: [3], groups: 3}"], "model.backbone.deformable.groups: 3 groups do"),
        (["model.backbone.deformable={stages: [4, 5]}"], "model.backbone.deformable.stages: stages [5] are not"),
        (
            ["model.backbone.deformable={stages: [4], version: 1, mask_scale: 2}"],
            "model.backbone.deformable.mask_scale: version 1 has no mask",
        ),
        (["model.roi_pool.canonical_stride=4"], "model.roi_pool.canonical_stride: RoIs are pooled at strides"),
        (["model.roi_pool={type: DeformPSRoIPool}"], "model.roi_pool.type: DeformPSRoIPool needs a single map"),
        (["model.rpn.anchors.sizes=[[8], [16, 32], [64]]"], "model.rpn.anchors.sizes: every level needs the same"),
        (
            ["model.roi_sampler.sampler.count=3"],
            "model.roi_sampler.sampler.count: foreground_share 0.25",
        ),
        (["model.rpn.sampler={count: 1}"], "model.rpn.sampler.count: foreground_share 0.5 of count 1"),
        (["model.box_head={type: Res5Head}"], "model.box_head.depth: stage 5 of ResNet 50 needs the 1024 channels"),
        (["model.mimic={backbone: {type: ResNet, norm: none}}"], "model.mimic.backbone.norm: a ResNet without"),
        (["model.mimic={crop_size: 100}"], "model.mimic.crop_size: 100 is not a multiple of 16"),
    ],
)
def test_an_impossible_combination_names_the_key(overrides: list[str], expected: str, tmp_path: Path) -> None:
    """A default that is not given (`Res5Head.depth`) has the place of its owner."""
    with pytest.raises(UserError) as error:
        build_model(load_config(tmp_path / "tiny.yml", overrides), CLASSES)
    assert f": {expected}" in str(error.value)


def test_no_constructor_raises_a_plain_value_error() -> None:
    """`config.registry.build` locates IncompatibleArguments; a ValueError would have no place."""
    for cls in registry._registry.values():
        for name in {"__init__", "__post_init__"} & vars(cls).keys():
            if name == "__post_init__" or not is_dataclass(cls):
                assert "raise ValueError" not in inspect.getsource(getattr(cls, name)), cls
