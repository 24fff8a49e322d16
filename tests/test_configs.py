"""Every recipe that is shipped: it loads, its model builds and takes a training step."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import paddle
import pytest
import yaml
from paddle.vision import models

from ppdet_lite.assembly.batch_tensors import detection_arguments
from ppdet_lite.assembly.setup import build_model, build_uninitialized, load_config
from ppdet_lite.config.checked_config import Config, to_plain
from ppdet_lite.config.registry import build
from ppdet_lite.deployment.export import save_graph
from ppdet_lite.deployment.predictor import Predictor
from ppdet_lite.modeling import residual
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.optimization.optimizer import Optimizer
from ppdet_lite.optimization.schedule import Schedule
from ppdet_lite.peers.zoo import find_entry
from ppdet_lite.training.step import train_step
from tests import tiny
from tests.onnx_files import onnx_predictor

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
RECIPES = sorted(path for path in CONFIGS.rglob("*.yml") if "_base_" not in path.relative_to(CONFIGS).parts)
CLASSES = ["cat", "dog", "cow"]
BACKBONE_PARAMETERS = {  # torchvision's, without the classifier
    "r18": 11_176_512,
    "r34": 21_284_672,
    "r50": 23_508_032,
    "r101": 42_500_160,
    "r152": 58_143_808,
    "x101": 81_406_272,
}
SMALLER = [  # less of what takes the time
    "model.roi_sampler.sampler.count=16",
    "model.rpn={pre_nms_train: 200, post_nms_train: 60, pre_nms_test: 200, post_nms_test: 30}",
]


def name_of(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def small(path: Path, overrides: Sequence[str] = ()) -> Config:
    """A recipe with less of what takes the time, and other values of a user's."""
    model = load_config(path)["model"]
    widths = (("box_head", "width"), ("roi_pool", "hidden"))
    narrow = [f"model.{part}.{key}=64" for part, key in widths if key in model[part]]
    if model["mimic"] is not None:
        narrow.append("model.mimic={crop_size: 64, rois_per_image: 4}")
    if "stages" in model:  # two do what three do
        narrow.append(f"model.stages={json.dumps([to_plain(stage) for stage in model['stages'][:2]])}")
    return load_config(path, [*SMALLER, *narrow, *overrides])


SIZES = ("sizes", "pre_nms_test", "post_nms_test", "out_channels", "width", "hidden", "convs", "conv_channels")
OF_TRAINING = ("frozen_stages", "stage_lr", "offset_lr", "recompute", "mimic", "roi_sampler", "sampler", "matcher")
OF_TRAINING += ("pre_nms_train", "post_nms_train", "train_limit_over", "box_loss", "beta", "stages", "stage_rois")


def leaves(tree: object, without: Sequence[str], place: str = "model") -> Iterator[str]:
    """Every value of a tree with its place, but those of the keys `without`."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key not in without:
                yield from leaves(value, without, f"{place}.{key}")
    else:
        yield f"{place}={tree}"


def graph_settings(model: Config, without: Sequence[str] = SIZES + OF_TRAINING) -> set[str]:
    """What decides which operators an exported graph, or a training step, has."""
    tree = yaml.safe_load(model.dump())
    for part in (tree["backbone"], tree["neck"] or {}, tree["box_head"]):
        if "depth" in part:
            part["depth"] = "two convolutions a block" if part["depth"] < 50 else "three"
        if part.get("norm") in ("gn", "ln", "in"):
            part["norm"] = "of groups"  # more or fewer of them
    return set(leaves(tree, without))


def with_every_setting(settings: Mapping[Path, set[str]]) -> list[Path]:
    """Few recipes that have every setting among them."""
    chosen, seen = [], set()
    while found := max((values - seen for values in settings.values()), key=len):
        chosen.append(next(path for path, values in settings.items() if values - seen == found))
        seen |= found
    return chosen


# Others train the same one longer, or on other data.
MODEL_OF = {path: load_config(path, [*SMALLER, "model.backbone.stage_lr=[1, 1, 1, 1]"])["model"] for path in RECIPES}
MODELS = sorted({model.dump(): path for path, model in reversed(MODEL_OF.items())}.values())
GRAPH = CONFIGS / "gn/cascade_rcnn_r50_fpn_gn_2x_coco.yml"  # tests/deployment and tests/modeling export other parts
STEPS = with_every_setting({path: graph_settings(MODEL_OF[path], SIZES) for path in MODELS[::-1]})


@pytest.fixture(scope="module", params=MODELS, ids=name_of)
def config(request: pytest.FixtureRequest) -> Config:
    """Of each model a recipe."""
    return small(request.param)


@pytest.fixture
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few in each stage, whatever the depth; `make test-slow` has all."""
    if not request.config.getoption("--slow"):
        for depth in residual.BLOCKS_PER_STAGE:
            monkeypatch.setitem(residual.BLOCKS_PER_STAGE, depth, (1, 1, 1, 2))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_header_tells_what_it_is(path: Path) -> None:
    """Comments on top: what and from which paper, the command, the AP to expect and whose number it is."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert len(lines) <= 25
    if path.parent.name == "quickstart":
        assert "make quickstart" in header or f"-c {name_of(path).removesuffix('.yml')}" in header
        return
    assert "https://arxiv.org/abs/" in header
    assert f"ppdet-lite train -c {name_of(path).removesuffix('.yml')}" in header
    assert "AP" in header


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("_base_/**/*.yml")), ids=name_of)
def test_bases_are_short_and_begin_with_what_they_are(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 25
    assert lines[0].startswith(("# ", "_base_:"))


@pytest.mark.parametrize("path", [path for path in RECIPES if path.parent.name != "quickstart"], ids=name_of)
def test_file_name_and_model_agree(path: Path) -> None:
    """The name tells depth, variant, width, pyramid and norms as PaddleDetection's names do."""
    model, name = load_config(path)["model"], path.stem.split("_")
    backbone = model["backbone"]
    assert ("x101" in name) == (backbone["groups"] == 64) and (f"r{backbone['depth']}" in name or "x101" in name)
    assert ("vd" in name) == (backbone["variant"] == "d") and backbone["variant"] in "bd"
    assert ("dc5" in name) == backbone["dilated"]
    necks = {"fpn": "FPN", "dc5": "Reduction"}
    assert (model["neck"] or {}).get("type") == next((kind for part, kind in necks.items() if part in name), None)
    deformable = any(part in name for part in ("dcn", "dconv", "mdconv"))
    assert deformable == (backbone["deformable"] is not None)
    assert any(part in name for part in ("dpool", "mdpool")) == (model["roi_pool"]["type"] == "DeformRoIPool")
    assert ("mimic" in name) == (model["mimic"] is not None)
    assert ("cascade" in name) == (model.get("type") == "CascadeRCNN")
    if "all" in name:
        assert {backbone["norm"], model["neck"]["norm"], model["box_head"]["norm"]} <= set(name)


def test_backbones_have_the_size_of_the_papers(config: Config, request: pytest.FixtureRequest) -> None:
    model = build_uninitialized(config, CLASSES)
    branches = ("._mean", "._variance", ".offset.weight", ".offset.bias")
    if config["model"]["backbone"]["variant"] == "d" or config["model"]["neck"] is None:
        return  # another stem; stage 5 elsewhere
    counted = sum(p.size for name, p in model.backbone.named_parameters() if not name.endswith(branches))
    names = next(part for part in request.node.name.split("_") if part in BACKBONE_PARAMETERS)
    assert counted == BACKBONE_PARAMETERS[names]


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_where_the_weights_to_start_from_come_from(path: Path) -> None:
    """Of a plain ResNet Paddle's own file, with its checksum; of others a classifier of the zoo."""
    config = load_config(path)
    spec, backbone = config["pretrain_weights"], config["model"]["backbone"]
    if spec is None:
        assert backbone["norm"] != "frozen_bn"
    elif backbone["variant"] == "b":
        assert f"/resnet{backbone['depth']}.pdparams#md5=" in spec
    else:
        assert find_entry(spec).recipe is None  # which tests/peers/test_zoo.py compares with the backbone


def test_pretrained_weights_fit(config: Config) -> None:
    """Paddle's ResNet of that depth has every array of the backbone and of a C4 head, and no other."""
    model, backbone = build_uninitialized(config, CLASSES), config["model"]["backbone"]
    if config["pretrain_weights"] is None or backbone["variant"] != "b":
        return
    with paddle.LazyGuard():
        theirs = getattr(models, f"resnet{backbone['depth']}")().state_dict()
    shapes = {model.backbone.upstream_name(name): value.shape for name, value in theirs.items() if name[:3] != "fc."}
    ours = {
        name.partition(".")[2]: value.shape
        for name, value in model.state_dict().items()
        if name.startswith(("backbone.", "box_head.res5.")) and ".offset." not in name
    }
    assert shapes == ours


def steady(config: Config) -> FasterRCNN:
    """Without pretrained weights a frozen BN normalizes nothing, so the last BN of each block is made small."""
    model = build_model(config, CLASSES)
    for name, parameter in model.backbone.named_parameters():
        if parameter.stop_gradient and name.endswith(("conv2.norm.weight", "conv3.norm.weight")):
            parameter.set_value(parameter * 0.2)
    return model


def test_a_training_step(config: Config, blocks: None, request: pytest.FixtureRequest) -> None:
    """Of every setting one; `make test-slow` trains all models."""
    if request.node.callspec.params["config"] not in STEPS and not request.config.getoption("--slow"):
        pytest.skip("its settings are in other steps: make test-slow")
    model = steady(config)
    settings, schedule = build(config["optimizer"]), build(config["schedule"])
    assert isinstance(settings, Optimizer)
    assert isinstance(schedule, Schedule)
    optimizer = settings.build(model)
    optimizer.set_lr(settings.scaled_lr(2) * schedule.factor(1, 1000, 10))
    parts = [
        "backbone.res4.0.conv1.conv.weight",
        "neck.lateral.0.conv.weight",
        "neck.reduce.conv.weight",
        "box_head.res5.0.conv1.conv.weight",
        "predictor.classify.weight",
    ]
    watched = [name for name in parts if name in model.state_dict()]
    assert len(watched) == 3
    before = {name: parameter.numpy() for name, parameter in model.named_parameters() if name in watched}
    model.train()
    losses = train_step(model, optimizer, tiny.batch()).losses
    assert np.isfinite(list(losses.values())).all()
    classification = sum(value for name, value in losses.items() if name.startswith("loss_cls"))  # of all stages
    assert 0.5 < classification < 5  # three classes and background: log 4 = 1.4 to begin with
    moved = {name for name, p in model.named_parameters() if name in watched and (p.numpy() != before[name]).any()}
    assert moved == set(watched)


def exported_finds_the_same(model: FasterRCNN, folder: Path, and_onnx: bool) -> None:
    """On a small image, by Paddle's inference engine and ONNX Runtime: scores to 1e-4, boxes to 1e-2 pixels."""
    model.eval()
    save_graph(model, folder)
    batch = {key: value[:1] for key, value in tiny.batch().items()}
    with paddle.no_grad():
        found = model(*detection_arguments(batch))
    columns = [found.classes.astype("float32").unsqueeze(1), found.scores.unsqueeze(1), found.boxes]
    expected = in_order(paddle.concat(columns, axis=1).numpy())
    for load in (Predictor, *([partial(onnx_predictor, model)] if and_onnx else [])):
        predictor = load(folder)
        rows, counts = predictor(batch["images"], batch["image_sizes"], batch["scales"])
        assert counts.tolist() == found.counts.tolist() == [len(expected)]
        np.testing.assert_allclose(in_order(rows)[:, :2], expected[:, :2], atol=1e-4)
        np.testing.assert_allclose(in_order(rows)[:, 2:], expected[:, 2:], atol=1e-2)


def in_order(rows: np.ndarray) -> np.ndarray:
    """By class and place: near-equal scores may swap."""
    return rows[np.lexsort(rows[:, [3, 2, 0]].round(1).T)]


def test_the_exported_graph_finds_the_same(
    config: Config, blocks: None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """One whole model; `make test-slow` exports all, as ONNX too."""
    slow = request.config.getoption("--slow")
    if not slow and request.node.callspec.params["config"] != GRAPH:
        pytest.skip("other tests export its parts: make test-slow")
    exported_finds_the_same(steady(config), tmp_path, and_onnx=slow)


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
