"""A run with a Cascade R-CNN, from rehearsal to detections, and what starts from its weights."""

from pathlib import Path

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.pretrained import load_pretrained
from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.drawing import write_image
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.offsets import deformable_parts
from ppdet_lite.modeling.cascade import CascadeRCNN
from ppdet_lite.storage.weights import read_weights
from ppdet_lite.training.diagnosis import StepInput, diagnose
from ppdet_lite.training.loop import train
from ppdet_lite.training.metrics_file import read_metrics
from tests import tiny
from tests.evaluation import test_offsets
from tests.random_detector import random_detector
from tests.tiny_run import QUICKSTART, WITHOUT_STAGE_5, small_shapes

CASCADE = Path(__file__).resolve().parents[2] / "configs/bccd/cascade_rcnn_r18_fpn_bccd.yml"
NUMBERED = [f"loss_{kind}_{k}" for k in (1, 2, 3) for kind in ("cls", "box")]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides under which a recipe trains on a few shapes."""
    overrides = small_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=2)
    return [
        *overrides,
        "data.augment.short_sides=null",
        "model.rpn={pre_nms_train: 100, post_nms_train: 40, post_nms_test: 20}",
    ]


@pytest.fixture(scope="module")
def run(shapes: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations: rehearsed, in bfloat16, with averaged weights and validation losses."""
    settings = ["train={length: 2 iterations, log_every: 1, rehearse: true, amp: bfloat16}", "eval.loss=true"]
    settings += ["train.ema={decay: 0.9}", "train.checkpoint_every=2 iterations", "train.evaluate_every=2 iterations"]
    folder = tmp_path_factory.mktemp("runs") / "cascade"
    train(load_config(CASCADE, [*shapes, *settings]), folder)
    return folder


def test_a_run(run: Path) -> None:
    rows = list(read_metrics(run / "metrics.jsonl"))
    assert [{f"val_{name}" for name in NUMBERED} <= row.keys() for row in rows] == [False, False, True]
    for row in rows[:2]:
        assert set(NUMBERED) <= row.keys() and np.isfinite([row[name] for name in NUMBERED]).all()
        assert {f"foreground_rois_{k}" for k in (1, 2, 3)} <= row.keys()
    detector = Detector.load(run)
    assert isinstance(detector.network.model, CascadeRCNN)
    assert detector(np.full((64, 96, 3), 128, np.uint8)).boxes.shape[1] == 4
    names = read_weights(run / "checkpoints/best").arrays
    assert {
        "predictor.classify.bias",
        "earlier.0.predictor.classify.bias",
        "earlier.1.box_head.fc1.bias",
    } <= names.keys()


def test_fine_tuning_to_other_classes(run: Path) -> None:
    """The classifiers of all stages get the outputs of shared classes; boxes belong to no class."""
    theirs = read_weights(run / "checkpoints/best")
    names, arrays = theirs.meta["class_names"], theirs.arrays
    ours = ["x", names[1]]
    model = build_model(load_config(CASCADE, small_model()), ours)
    report = load_pretrained(model, str(run), ours)
    assert not report.missing and not report.mismatched
    for part in ("predictor", "earlier.0.predictor", "earlier.1.predictor"):
        state = model.state_dict()
        assert state[f"{part}.classify.bias"][1:].tolist() == arrays[f"{part}.classify.bias"][[1, -1]].tolist()
        assert (state[f"{part}.regress.weight"].numpy() == arrays[f"{part}.regress.weight"]).all()


def small_model() -> list[str]:
    return [*WITHOUT_STAGE_5, "model.neck.out_channels=32", "model.box_head.width=32"]


def test_a_cascade_starts_from_a_faster_rcnn(tmp_path: Path) -> None:
    """Its head starts every stage; box layers of classes fit no stage."""
    config = load_config(QUICKSTART, small_model())
    faster = build_model(config, ["a", "b"])
    paddle.save(faster.state_dict(), str(tmp_path / "faster.pdparams"))
    cascade = build_model(load_config(CASCADE, small_model()), ["a", "b"])
    report = load_pretrained(cascade, str(tmp_path / "faster.pdparams"), ["a", "b"])
    head, state = faster.box_head.fc1.weight.numpy(), cascade.state_dict()
    for part in ("", "earlier.0.", "earlier.1."):
        assert (state[f"{part}box_head.fc1.weight"].numpy() == head).all()
        assert f"{part}predictor.classify.weight" in report.matched
    assert sorted(report.missing) == [
        f"earlier.{k}.predictor.regress.{part}" for k in (0, 1) for part in ("bias", "weight")
    ]
    assert [array.name for array in report.mismatched] == ["predictor.regress.weight", "predictor.regress.bias"]


def test_a_step_that_is_not_finite_is_traced_to_its_stage() -> None:
    model = tiny.detector(cascade={})
    model.train()
    stage = model.earlier[1].box_head.fc2
    stage.bias.set_value(stage.bias + float("inf"))
    found = diagnose(model, StepInput([tiny.batch()], 0, [0]))
    assert found.first == "weight earlier.1.box_head.fc2.bias" and "earlier" in found.gradient_norms


def test_boxes_of_classes_are_refused() -> None:
    config = load_config(CASCADE, ["model.predictor.class_agnostic=false"])
    with pytest.raises(
        UserError, match=r"model\.predictor\.class_agnostic: a cascade needs one box per RoI.* set it to true"
    ):
        build_model(config, ["a"])


def test_rois_of_drawn_bins(tmp_path: Path) -> None:
    """The bins are those of the last stage, whose RoIs became the detections."""
    settings = ["data.preprocess={short_side: 480, long_side: 640}", "model.rpn.post_nms_test=30"]
    pool = "model.roi_pool={type: DeformRoIPool, modulated: true, hidden: 32}"
    detector = random_detector(load_config(CASCADE, [*small_model(), *settings, pool]))
    assert list(deformable_parts(detector.model)) == ["roi_pool", "earlier.0.roi_pool", "earlier.1.roi_pool"]
    write_image(tmp_path / "photo.png", np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8))
    test_offsets.test_the_rois_drawn_are_those_that_became_the_detections(detector, tmp_path / "photo.png")
