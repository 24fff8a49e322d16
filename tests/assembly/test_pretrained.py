"""Pretrained weights under other projects' names, and of detectors with other classes."""

import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ppdet_lite.assembly.pretrained import load_pretrained
from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.peers.names.classifiers import caffe2_classifier, ppdet_classifier
from ppdet_lite.storage.checkpoint import save_checkpoint
from tests.oracles import manifest

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["cat", "dog", "cow"]
SMALL = ["model.box_head.width=16", "model.neck.out_channels=32"]
C4 = [
    "model.backbone={depth: 18, norm: frozen_bn, out_stages: [4]}",
    "model.box_head={type: Res5Head, depth: 18}",
    "model.neck=null",
    "model.rpn.anchors.sizes=[[32, 64]]",
    "model.roi_pool={output_size: 14, levels: 1}",
]


FPN = ["model.backbone={depth: 18, norm: frozen_bn}", *SMALL]


def model_of(*overrides: str, base: list[str] = FPN, classes: list[str] = CLASSES) -> FasterRCNN:
    return build_model(load_config(ROOT / "configs/quickstart/shapes_r18_fpn.yml", [*base, *overrides]), classes)


def trunk_of(model: FasterRCNN) -> dict[str, np.ndarray]:
    """Random arrays for all weights that a classifier contains."""
    rng = np.random.default_rng(0)
    state = {
        name: value for name, value in model.state_dict().items() if name.startswith(("backbone.", "box_head.res5."))
    }
    return {name: rng.normal(size=value.shape).astype(np.float32) for name, value in state.items()}


def shapes_of(arrays: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def assert_all_loaded(model: FasterRCNN, path: Path, expected: dict[str, np.ndarray]) -> None:
    report = load_pretrained(model, str(path))
    assert not report.missing and not report.mismatched and set(report.matched) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), array, err_msg=name)


@pytest.mark.parametrize("prefixed", [False, True])
@pytest.mark.parametrize("kind", ["vd", "C4"])
def test_paddledetection_classifiers(tmp_path: Path, kind: str, prefixed: bool) -> None:
    model = model_of("model.backbone.variant=d") if kind == "vd" else model_of(base=C4)
    wanted = trunk_of(model)
    theirs = ppdet_classifier(shapes_of(wanted)).to_theirs(wanted)
    assert "backbone.res2.res2b.branch2a.conv.weight" in theirs
    if not prefixed:
        theirs = {name.removeprefix("backbone.").removeprefix("bbox_head.head."): a for name, a in theirs.items()}
        theirs["fc.weight"] = np.zeros((512, 9), np.float32)
    save_file(theirs, tmp_path / "w.safetensors")
    assert_all_loaded(model, tmp_path / "w.safetensors", wanted)


def test_a_torch_classifier_fills_a_c4_detector(tmp_path: Path) -> None:
    """Its layer4 is the box head; a .pkl of NumPy arrays stands for torch's file."""
    model = model_of(base=C4)
    wanted, theirs = trunk_of(model), {}
    for name, shape in manifest.read("torchvision", "resnet18").items():
        ours = model.backbone.upstream_name(name)
        own = next((part + ours for part in ("backbone.", "box_head.") if part + ours in wanted), None)
        theirs[name] = np.zeros(shape, np.float32) if own is None else wanted[own]
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"state_dict": theirs}))
    assert_all_loaded(model, tmp_path / "w.pkl", wanted)


def test_caffe2_classifiers(tmp_path: Path) -> None:
    """detectron2's ImageNetPretrained/MSRA/R-50.pkl: every name of it."""
    model = model_of("model.backbone={depth: 50, variant: a}")
    wanted = trunk_of(model)
    theirs = caffe2_classifier(shapes_of(wanted)).to_theirs(wanted)
    listed = manifest.read("detectron2", "ImageNetPretrained/MSRA/R-50.pkl")
    assert {name: array.shape for name, array in theirs.items()} == {
        name: shape for name, shape in listed.items() if not name.startswith(("fc1000", "conv1_b"))
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({**theirs, "fc1000_b": np.zeros(9, np.float32)}, 2))
    assert_all_loaded(model, tmp_path / "R-50.pkl", wanted)


def test_shared_classes_of_a_detector_are_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = model_of(classes=["dog", "bird"])
    arrays = {name: value.numpy() for name, value in trained.state_dict().items()}
    arrays["predictor.classify.bias"] = np.array([1, 2, 3], np.float32)
    save_checkpoint(tmp_path / "ckpt", {"model": arrays}, {"class_names": ["dog", "bird"], "category_ids": [1, 2]})
    model = model_of()
    fresh = model.predictor.classify.bias.numpy()
    with caplog.at_level(logging.INFO):
        report = load_pretrained(model, str(tmp_path / "ckpt"), CLASSES)
    assert not report.mismatched and not report.missing
    assert model.predictor.classify.bias.tolist() == [fresh[0], 1, fresh[2], 3]
    assert "copied by name: dog; randomly initialized: cat, cow" in caplog.text
    load_pretrained(model, str(tmp_path / "ckpt"), CLASSES, {"bird": "cow"})
    assert model.predictor.classify.bias.tolist() == [fresh[0], 1, 2, 3]


def test_a_class_map_needs_class_names(tmp_path: Path) -> None:
    save_file(trunk_of(model_of()), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"pretrain_class_map: .*w\.safetensors has no class names"):
        load_pretrained(model_of(), str(tmp_path / "w.safetensors"), CLASSES, {"bird": "cow"})
