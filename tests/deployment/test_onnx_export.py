"""A detector as an ONNX file: its detections, its operators, and failed conversions."""

import errno
import importlib.util
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import paddle
import pytest
from onnx import helper
from paddle import nn

import ppdet_lite
from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.data.synthetic.shapes import scene
from ppdet_lite.deployment import export as export_module
from ppdet_lite.deployment import onnx_export
from ppdet_lite.deployment.description import SECTION, Description, from_json
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.deployment.export import export, save_graph
from ppdet_lite.structures import PackedDetections
from tests import tiny
from tests.onnx_packages import needs_onnx_export, require_onnx_export

NAMES, IDS = ["cat", "dog", "naïve"], [7, 3, 90]
FILES = ["infer_cfg.yml", "model.json", "model.onnx", "model.pdiparams"]


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    """A class-agnostic detector that takes BGR."""
    model = tiny.detector(class_agnostic=True)
    nn.initializer.Normal(0, 1.0)(model.predictor.classify.weight)
    nn.initializer.Normal(0, 0.3)(model.predictor.regress.weight)
    model.eval()
    preprocess = Preprocess(short_side=96, long_side=160, channels="bgr", sizing="unrounded")
    return TrainedModel(model, NAMES, IDS, preprocess, "nowhere")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two images of different shapes."""
    paths = [tmp_path_factory.mktemp("pictures") / f"{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        cv2.imwrite(str(path), cv2.resize(scene(np.random.default_rng(i), 160)[0], (100 + 60 * i, 120)))
    return paths


@pytest.fixture(scope="module")
def exported(trained: TrainedModel, pictures: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_onnx_export()
    folder = tmp_path_factory.mktemp("export") / "model"
    agreement = export(trained, folder, pictures, "both")
    assert agreement.detections > 30 and agreement.box_gap < 1e-2 and agreement.score_gap < 1e-4
    return folder


@pytest.fixture(scope="module")
def loaded(exported: Path) -> dict[str, Detector]:
    """Both formats, loaded once, since loading takes seconds."""
    return {name: Detector.load(exported / name) for name in ("", "model.onnx")}


def test_both_formats_in_one_folder_have_the_same_detections(
    exported: Path, loaded: dict[str, Detector], pictures: list[Path]
) -> None:
    assert sorted(path.name for path in exported.iterdir()) == FILES
    by_paddle, by_onnx = loaded.values()
    for picture in map(str, pictures):
        paddles, onnxs = by_paddle(picture), by_onnx(picture)
        assert len(onnxs.boxes) and onnxs.names == paddles.names
        np.testing.assert_allclose(onnxs.boxes, paddles.boxes, atol=1e-2)
        np.testing.assert_allclose(onnxs.scores, paddles.scores, atol=1e-4)


@pytest.mark.parametrize("file", ["", "model.onnx"])
def test_boxes_are_clipped_to_the_size_before_rounding(
    loaded: dict[str, Detector], pictures: list[Path], file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 x 120 (w, h) at 0.96 is 96 x 115.2, of which 115 rows are pixels."""
    detector, calls = loaded[file], []
    run = detector.network.__class__.__call__

    def record(network: object, *arrays: np.ndarray) -> tuple:
        calls.append(arrays[1])
        return run(network, *arrays)

    monkeypatch.setattr(detector.network.__class__, "__call__", record)
    detector(str(pictures[0]))
    np.testing.assert_allclose(calls, [[[115.2, 96]]], rtol=1e-6)


def test_any_batch_and_size(trained: TrainedModel, loaded: dict[str, Detector]) -> None:
    network = loaded["model.onnx"].network
    for batch, height, width in ((1, 64, 64), (3, 96, 160), (2, 160, 96), (1, 64, 64)):
        images = np.random.default_rng(height).normal(size=(batch, 3, height, width)).astype(np.float32)
        sizes = np.stack([[height - 5.1 * i, width - 3.2 * i] for i in range(batch)]).astype(np.float32)
        scales = np.stack([[0.5 + i, 0.75] for i in range(batch)]).astype(np.float32)
        rows, counts = network(images, sizes, scales)
        with paddle.no_grad():
            found = trained.model(*map(paddle.to_tensor, (images[:, ::-1].copy(), sizes, scales)))
        assert rows.dtype == np.float32 and counts.dtype == np.int32 and rows.shape == (counts.sum(), 6)
        assert counts.tolist() == found.counts.tolist() and counts.all()
        order, other = (
            np.lexsort((boxes.round(1), -scores.round(4)))
            for boxes, scores in ((rows[:, 2], rows[:, 1]), (found.boxes.numpy()[:, 0], found.scores.numpy()))
        )
        np.testing.assert_allclose(rows[order, 1], found.scores.numpy()[other], atol=1e-4)
        np.testing.assert_allclose(rows[order, 2:], found.boxes.numpy()[other], atol=1e-2)


@pytest.mark.parametrize("file", ["", "model.onnx"])
def test_images_of_any_size_are_padded(loaded: dict[str, Detector], file: str) -> None:
    """The results are those of images that `collate` has padded, clipped to the size without padding."""
    network = loaded[file].network
    for batch, size, padded_size in ((2, (100, 130), (128, 160)), (3, (33, 64), (64, 64)), (2, (1, 1), (32, 32))):
        images = np.random.default_rng(0).normal(size=(batch, 3, *size)).astype(np.float32)
        sizes, scales = np.full((batch, 2), size, np.float32), np.ones((batch, 2), np.float32)
        padded = np.zeros((batch, 3, *padded_size), np.float32)
        padded[:, :, : size[0], : size[1]] = images
        rows, counts = network(images, sizes, scales)
        expected, expected_counts = network(padded, sizes, scales)
        assert counts.tolist() == expected_counts.tolist() and counts.all()
        np.testing.assert_array_equal(rows, expected)
        assert (rows[:, 2:].max(axis=0) <= [*size[::-1]] * 2).all()


def test_images_that_cannot_be_padded_are_an_error_of_one_line(
    exported: Path, loaded: dict[str, Detector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of PaddleDetection's files without a description: the stride is unknown."""
    network, sizes = loaded[""].network, np.full((1, 2), 100, np.float32)
    monkeypatch.setattr(network, "_stride", None)
    with pytest.raises(UserError, match=r"fails on images \[1, 3, 100, 100\]; infer_cfg.yml is missing: pad") as caught:
        network(np.zeros((1, 3, 100, 100)), sizes, np.ones((1, 2)))
    assert "\n" not in str(caught.value) and str(exported) in str(caught.value)


def test_nothing_to_find(loaded: dict[str, Detector]) -> None:
    rows, counts = loaded["model.onnx"].network(np.zeros((2, 3, 64, 96), np.float32), np.zeros((2, 2)), np.ones((2, 2)))
    assert rows.shape == (0, 6) and counts.tolist() == [0, 0]


def test_the_graph_has_standard_operators_and_a_description(trained: TrainedModel, exported: Path) -> None:
    model = onnx.load(str(exported / "model.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert {node.domain for node in onnx_export.nodes(model.graph)} == {""} and not model.functions
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 19)]
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "image": ["N", 3, "H", "W"],
        "im_shape": ["N", 2],
        "scale_factor": ["N", 2],
        "fetch_name_0": ["M", 6],
        "fetch_name_1": ["N"],
    }
    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    told = from_json(session.get_modelmeta().custom_metadata_map[SECTION], "a test")
    assert told == Description.from_trained(trained)
    assert (told.class_names, told.category_ids, told.preprocess.channels) == (NAMES, IDS, "rgb")
    assert (model.producer_name, model.producer_version) == ("ppdet_lite", ppdet_lite.__version__)


def test_an_operator_of_another_domain_is_refused() -> None:
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Gelu", ["x"], ["y"], domain="com.other")], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19), helper.make_opsetid("com.other", 1)])
    with pytest.raises(RunFailed, match=r"has operators of com\.other"):
        onnx_export.insert_replacements(model, [])


class Unconvertible(nn.Layer):
    """A model with a detector's inputs and outputs, and an operator that paddle2onnx does not support."""

    def forward(self, images, image_sizes, scales, original_sizes):
        scores = paddle.lgamma(images.flatten(1).mean(axis=1))
        boxes = paddle.concat([image_sizes, scales], axis=1)
        return PackedDetections(boxes, scores, paddle.zeros_like(scores), paddle.ones_like(scores))


@needs_onnx_export
def test_an_operator_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    """paddle2onnx aborts its process without naming the operator."""
    save_graph(Unconvertible(), tmp_path)
    with pytest.raises(RunFailed) as caught:
        onnx_export.save_onnx(tmp_path, tmp_path / "model.onnx", None)
    assert "cannot convert pd_op.lgamma; use other operators, or choose --format paddle" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


@needs_onnx_export
def test_another_failure_is_reported_with_its_error(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(RunFailed, match=r"paddle2onnx 2\.\S+ failed: .*rror"):
        onnx_export.save_onnx(tmp_path, tmp_path / "model.onnx", None)


@needs_onnx_export
def test_a_full_disk(tmp_path: Path, trained: TrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """During the conversion by paddle2onnx, and while the file is written."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "save_graph", lambda model, folder, preprocess: None)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match="model: cannot be written: No space left on device; free space or choose"):
        export(trained, tmp_path / "model", None, "onnx")
    monkeypatch.setattr(onnx_export, "_convert", lambda folder, scratch: [])
    monkeypatch.setattr(onnx, "load", lambda path: helper.make_model(helper.make_graph([], "g", [], [])))
    monkeypatch.setattr(onnx.checker, "check_model", lambda model, full_check: None)
    monkeypatch.setattr(onnx, "save", full)
    with pytest.raises(UserError, match="model: cannot be written: No space left on device; free space or choose"):
        export(trained, tmp_path / "model", None, "onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_wheels", [True, False])
def test_missing_packages_are_reported_before_the_export(
    trained: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_wheels: bool
) -> None:
    monkeypatch.setattr(onnx_export, "NO_PADDLE2ONNX", (4, 0) if has_wheels else (3, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else name)
    monkeypatch.setattr(export_module, "save_graph", None)
    with pytest.raises(UserError) as caught:
        export(trained, tmp_path / "model", None, "both")
    packages = "ONNX export needs onnx, onnxruntime, paddle2onnx: pip install onnx onnxruntime paddle2onnx"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    no_wheels = (
        f"ONNX export needs paddle2onnx, which has no wheels for Python {version}: export with Python 3.10 to 3.12"
    )
    assert str(caught.value) == (packages if has_wheels else no_wheels)


def test_one_format_does_not_delete_another(trained: TrainedModel, exported: Path) -> None:
    for format in ("onnx", "paddle"):
        with pytest.raises(UserError, match=r"contains .* of another format; add --format both, or choose another"):
            export(trained, exported, None, format)
    assert sorted(path.name for path in exported.iterdir()) == FILES
