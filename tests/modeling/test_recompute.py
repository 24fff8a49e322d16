"""Gradient checkpointing of the backbone: the same step with less memory."""

from typing import Any

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.deform import Deformable
from ppdet_lite.modeling.residual import BasicBlock
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.optimization.optimizer import SGD
from ppdet_lite.training.step import train_step
from tests import tiny

BACKBONES: dict[str, dict[str, Any]] = {
    "all trained": {"norm": "bn", "frozen_stages": 0},
    "two stages frozen": {"norm": "bn", "frozen_stages": 2},
    "deformable": {"norm": "gn", "frozen_stages": 1, "deformable": Deformable(stages=(5,))},
}


def stepped(recompute: bool, options: dict[str, Any], **detector: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the losses of a step, and weights, statistics and gradients after it."""
    model = tiny.detector(**detector)
    paddle.seed(1)
    model.backbone = ResNet(18, recompute=recompute, **options)
    model.train()
    paddle.seed(2)
    optimizer = SGD().build(model)
    optimizer.set_lr(0.01)
    optimizer.clear_grad = lambda set_to_zero: None
    step = train_step(model, optimizer, tiny.batch(), clip_norm=1.0)
    state = {name: value.numpy() for name, value in model.state_dict().items()}
    gradients = {f"{name}/grad": p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return step.losses | step.metrics, state | gradients


@pytest.mark.parametrize("name", [*BACKBONES])
def test_a_step_is_the_same_bit_for_bit(name: str) -> None:
    """Losses, gradients, weights, and running statistics of batch norms, which must not be updated twice."""
    plain, again = (stepped(recompute, BACKBONES[name]) for recompute in (False, True))
    assert again[0] == plain[0]
    assert set(again[1]) == set(plain[1])
    for key, value in plain[1].items():
        np.testing.assert_array_equal(again[1][key], value, err_msg=key)


def test_patches_of_a_teacher_do_not_change_statistics() -> None:
    """The mimicking branch runs the same backbone with unchanged running statistics."""
    mimic = {"rois": "both", "include_ground_truth": True, "crop_size": 32, "rois_per_image": 2}
    plain, again = (stepped(recompute, BACKBONES["all trained"], mimic=mimic) for recompute in (False, True))
    assert plain[0]["mimic_rois"] == 2
    for key, value in plain[1].items():
        np.testing.assert_array_equal(again[1][key], value, err_msg=key)


def test_in_bfloat16_too() -> None:
    """The recomputation rounds in the same way."""
    found = []
    for recompute in (False, True):
        model = tiny.detector()
        model.backbone.recompute = recompute
        model.train()
        paddle.seed(2)
        optimizer = SGD().build(model)
        optimizer.set_lr(0.01)
        train_step(model, optimizer, tiny.batch(), amp="bfloat16")
        found.append({name: value.numpy() for name, value in model.named_parameters()})
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


def test_blocks_are_recomputed_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight blocks, the two in the frozen stage and the next one are not recomputed."""
    runs, forward = [], BasicBlock.forward
    monkeypatch.setattr(BasicBlock, "forward", lambda block, x: runs.append(block) or forward(block, x))
    backbone = ResNet(18, norm="bn", frozen_stages=2, recompute=True)
    images = paddle.rand([1, 3, 32, 32])
    sum(map(paddle.sum, backbone(images))).backward()
    assert [runs.count(block) for stage in (2, 3, 4, 5) for block in getattr(backbone, f"res{stage}")] == [
        *(1, 1, 1, 2, 2, 2, 2, 2)
    ]
    backbone.eval()
    runs.clear()
    sum(map(paddle.sum, backbone(images))).backward()
    assert len(runs) == 8
