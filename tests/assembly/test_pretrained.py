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
from ppdet_lite.peers.names.mmdet import mmdet
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
    assert "outputs copied: dog from dog, background; randomly initialized: cat, cow (in predictor" in caplog.text
    assert (
        f"{len(arrays) - 4} matched, 0 missing, 0 unexpected, 0 mismatched" in caplog.text
    )  # without the class layers
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_pretrained(model, str(tmp_path / "ckpt"), CLASSES, {"bird": "cow"})
    assert model.predictor.classify.bias.tolist() == [fresh[0], 1, 2, 3]
    assert "outputs copied: dog from dog, cow from bird, background; randomly initialized: cat (" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        load_pretrained(model_of(classes=["dog"]), str(tmp_path / "ckpt"), ["dog"])
    assert "randomly initialized: none" in caplog.text and f"{len(arrays)} matched" in caplog.text


def test_class_outputs_under_other_names_are_copied_by_class_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """mmdetection's file of dog and cat, in the other order or beside a third class."""
    for classes in (["cat", "dog"], CLASSES):
        trained, model = model_of(classes=["dog", "cat"]), model_of(classes=classes)
        ours = {name: value.numpy() for name, value in trained.state_dict().items()}
        ours["predictor.classify.bias"] = np.array([1, 2, 3], np.float32)
        ours["predictor.regress.bias"] = np.arange(8, dtype=np.float32)
        theirs = {f"module.{name}": a for name, a in mmdet(shapes_of(ours)).to_theirs(ours).items()}
        content = {"meta": {"CLASSES": ("dog", "cat")}, "state_dict": theirs}
        (tmp_path / "m.pkl").write_bytes(pickle.dumps(content))
        fresh = model.predictor.classify.bias.numpy()
        caplog.clear()
        with caplog.at_level(logging.INFO):
            report = load_pretrained(model, str(tmp_path / "m.pkl"), classes)
        assert not report.missing and not report.unexpected and not report.mismatched
        assert model.predictor.classify.bias.tolist() == [2, 1, *fresh[2:-1], 3]
        assert model.predictor.regress.bias.tolist()[:8] == [4, 5, 6, 7, 0, 1, 2, 3]
        assert "outputs copied: cat from cat, dog from dog, background" in caplog.text
        assert "the prefix 'module.' is removed from all names" in caplog.text


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("prefix", ["", "module.", "_layers.model."])
@pytest.mark.parametrize("suffix", ["safetensors", "pdparams", "pkl"])
def test_precision_and_prefix_of_a_classifier(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: type, prefix: str, suffix: str
) -> None:
    model, path = model_of(), tmp_path / f"w.{suffix}"
    wanted = {name: array.astype(np.float16).astype(np.float32) for name, array in trunk_of(model).items()}
    upstream = manifest.read("torchvision", "resnet18")
    theirs = {f"{prefix}{n}": wanted[f"backbone.{model.backbone.upstream_name(n)}"].astype(dtype) for n in upstream
              if f"backbone.{model.backbone.upstream_name(n)}" in wanted}  # fmt: skip
    if suffix == "safetensors":
        save_file(theirs, path)
    else:
        path.write_bytes(pickle.dumps(theirs))
    with caplog.at_level(logging.INFO):
        assert_all_loaded(model, path, wanted)
    assert (f"the prefix '{prefix}' is removed from all names" in caplog.text) == bool(prefix)


def test_a_prefix_that_fits_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All names of the trunk begin with "backbone." here."""
    model = model_of()
    save_file(trunk_of(model), tmp_path / "w.safetensors")
    with caplog.at_level(logging.INFO):
        report = load_pretrained(model, str(tmp_path / "w.safetensors"))
    assert report.matched.keys() == trunk_of(model).keys() and not report.unexpected
    assert "is removed from all names" not in caplog.text


def test_a_class_map_needs_class_names(tmp_path: Path) -> None:
    save_file(trunk_of(model_of()), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"pretrain_class_map: .*w\.safetensors has no class names"):
        load_pretrained(model_of(), str(tmp_path / "w.safetensors"), CLASSES, {"bird": "cow"})
