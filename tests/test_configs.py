"""Every recipe that is shipped: it loads, its model builds and takes a training step."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.vision import models

from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.config.checked import Config
from ppdet_lite.config.registry import build
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.optimization.optimizer import Optimizer
from ppdet_lite.optimization.schedule import Schedule
from ppdet_lite.training.step import train_step
from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
RECIPES = sorted(path for path in CONFIGS.rglob("*.yml") if "_base_" not in path.relative_to(CONFIGS).parts)
CLASSES = ["cat", "dog", "cow"]
BACKBONE_PARAMETERS = {18: 11_176_512, 34: 21_284_672, 50: 23_508_032, 101: 42_500_160}  # torchvision's, without fc


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


@pytest.fixture(scope="module", params=RECIPES, ids=name_of)
def built(request: pytest.FixtureRequest) -> Iterator[tuple[Config, FasterRCNN]]:
    """A recipe, with less of what takes the time, and its model; none stays longer than its tests."""
    smaller = ["model.roi_sampler.sampler.count=16", "model.box_head.width=64"]
    if "hidden" in load_config(request.param)["model"]["roi_pool"]:
        smaller.append("model.roi_pool.hidden=64")
    config = load_config(request.param, smaller)
    yield config, build_model(config, CLASSES)


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_header_tells_what_it_is(path: Path) -> None:
    """Comments on top: what and from which paper, the command, the AP to expect and whose number it is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert len(lines) <= 25
    if path.parent.name == "quickstart":
        assert "make quickstart" in header or f"-c configs/{name_of(path)}" in header
        return
    assert "https://arxiv.org/abs/" in header
    assert f"python tools/train.py -c configs/{name_of(path)}" in header
    assert "AP" in header


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("_base_/**/*.yml")), ids=name_of)
def test_bases_are_short_and_begin_with_what_they_are(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    assert lines[0].startswith(("# ", "_base_:"))


def test_file_name_and_backbone_agree(built: tuple[Config, FasterRCNN], request: pytest.FixtureRequest) -> None:
    config, model = built
    depth = config["model"]["backbone"]["depth"]
    assert f"r{depth}_fpn" in request.node.name
    extra = (
        "._mean",
        "._variance",
        ".offset.weight",
        ".offset.bias",
    )  # statistics, branches of deformable convolutions
    counted = sum(p.size for name, p in model.backbone.named_parameters() if not name.endswith(extra))
    assert counted == BACKBONE_PARAMETERS[depth]


def test_pretrained_weights_fit(built: tuple[Config, FasterRCNN]) -> None:
    """The file that the recipe downloads is Paddle's ResNet of that depth; every backbone array comes from it."""
    config, model = built
    spec, depth = config["pretrain_weights"], config["model"]["backbone"]["depth"]
    if spec is None:
        assert config["model"]["backbone"]["norm"] != "frozen_bn"
        return
    assert f"/resnet{depth}.pdparams#md5=" in spec
    with paddle.LazyGuard():
        theirs = getattr(models, f"resnet{depth}")().state_dict()
    shapes = {model.backbone.upstream_name(name): value.shape for name, value in theirs.items() if name[:3] != "fc."}
    ours = {name: value.shape for name, value in model.backbone.state_dict().items() if ".offset." not in name}
    assert shapes == ours


def test_a_training_step(built: tuple[Config, FasterRCNN]) -> None:
    """Without pretrained weights a frozen BN normalises nothing, so the last BN of each block is made small."""
    config, model = built
    for name, parameter in model.backbone.named_parameters():
        if parameter.stop_gradient and name.endswith(("conv2.norm.weight", "conv3.norm.weight")):
            parameter.set_value(parameter * 0.2)
    settings, schedule = build(config["optimizer"]), build(config["schedule"])
    assert isinstance(settings, Optimizer)
    assert isinstance(schedule, Schedule)
    optimizer = settings.build(model)
    optimizer.set_lr(settings.scaled_lr(2) * schedule.factor(1, 1000, 10))
    watched = ("backbone.res5.0.conv1.conv.weight", "neck.lateral.0.conv.weight", "predictor.classify.weight")
    before = {name: parameter.numpy() for name, parameter in model.named_parameters() if name in watched}
    model.train()
    losses = train_step(model, optimizer, tiny.batch()).losses
    assert np.isfinite(list(losses.values())).all()
    assert 0.5 < losses["loss_cls"] < 5  # three classes and background: log 4 = 1.4 to begin with
    moved = {name for name, p in model.named_parameters() if name in watched and (p.numpy() != before[name]).any()}
    assert moved == set(watched)


@pytest.mark.parametrize("path", sorted((CONFIGS / "mimic").glob("*.yml")), ids=name_of)
def test_mimicking_is_trained_as_in_the_paper(path: Path) -> None:
    """Deformable ConvNets v2, sections 3.3 and 5: 16 epochs at a short side of 1000, 32 RoIs of 224 x 224."""
    config = load_config(path)
    mimic, optimizer, schedule = config["model"]["mimic"], config["optimizer"], config["schedule"]
    assert (mimic["rois_per_image"], mimic["rois"], mimic["crop_size"]) == (32, "foreground", 224)
    assert (mimic["loss_weight"], mimic["cls_loss_weight"], mimic["backbone"]) == (0.1, 0.1, None)
    assert (optimizer["base_lr"], optimizer["base_batch"]) == (0.02, 16)
    assert [str(milestone) for milestone in schedule["milestones"]] == ["10 epochs", "14 epochs"]
    assert str(config["train"]["length"]) == "16 epochs" and schedule["gamma"] == 0.1
    assert config["data"]["preprocess"]["short_side"] == 1000
    assert config["data"]["augment"]["short_sides"] is None
