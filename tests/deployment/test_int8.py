"""Quantized ONNX files: what is quantized, when a file is kept, and its metadata."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from paddle import nn

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import RunFailed
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.data.synthetic.shapes import scene
from ppdet_lite.deployment import export as export_module
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.deployment.export import export, quantize_file
from ppdet_lite.evaluation.quality import agreement
from tests import tiny
from tests.onnx_packages import require_onnx_export

int8 = pytest.importorskip("ppdet_lite.deployment.int8")
FLOAT = {"rpn.objectness", "rpn.regress", "predictor.classify", "predictor.regress"}


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    model = tiny.detector(norm="bn")
    nn.initializer.Normal(0, 1.0)(model.predictor.classify.weight)
    nn.initializer.Normal(0, 0.3)(model.predictor.regress.weight)
    model.eval()
    return TrainedModel(model, ["a", "b", "c"], [1, 2, 3], Preprocess(short_side=96, long_side=128), "nowhere")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for i in range(4):
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(scene(np.random.default_rng(i), 160)[0], (128, 96)))
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def exported(trained: TrainedModel, images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_onnx_export()
    folder = tmp_path_factory.mktemp("export") / "model"
    export(trained, folder, images[:1], "onnx")
    return folder / "model.onnx"


@pytest.fixture
def file(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(exported, tmp_path))


@pytest.fixture(scope="module")
def quantized(exported: Path, trained: TrainedModel, images: list[Path], tmp_path_factory: Any) -> Path:
    file = Path(shutil.copy(exported, tmp_path_factory.mktemp("int8")))
    quantize_file(trained, file, int8.Int8(images, lambda detector: 0.5))
    return file


class Parts(NamedTuple):
    """A graph prepared for quantization, the nodes to quantize, the ranges of their tensors, and inputs."""

    prepared: Path
    nodes: list[Any]
    ranges: Any
    inputs: list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def parts(exported: Path, trained: TrainedModel, images: list[Path], tmp_path_factory: Any) -> Parts:
    prepared = tmp_path_factory.mktemp("parts") / "prepared.onnx"
    int8.quant_pre_process(str(exported), str(prepared), skip_symbolic_shape=True)
    nodes = int8.find_nodes(exported, prepared, layer_names(trained))
    inputs = list(int8.graph_inputs_of(images, trained.preprocess))
    return Parts(prepared, nodes, int8.calibrate(prepared, nodes, iter(inputs)), inputs)


def layer_names(trained: TrainedModel) -> dict[str, str]:
    return {weight.name: name.removesuffix(".weight") for name, weight in trained.model.named_parameters()}


def falling(*values: float) -> Any:
    """A measure of quality that returns these values in turn."""
    remaining: Iterator[float] = iter(values)
    return lambda detector: next(remaining)


def metadata(file: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}


def weights(file: Path, trained: TrainedModel) -> dict[str, np.ndarray]:
    """The weights of convolutions and products in a file, by the layer whose name they contain."""
    arrays = {w.name: numpy_helper.to_array(w) for w in onnx.load(str(file)).graph.initializer}
    suffixes = ("", "_quantized")
    return {
        layer: array
        for weight, layer in layer_names(trained).items()
        for name, array in arrays.items()
        if array.ndim > 1 and any(name in (weight + s, f"ConvBnFusion_W_{weight}{s}") for s in suffixes)
    }


def test_layers_are_quantized_except_those_that_predict(quantized: Path, trained: TrainedModel) -> None:
    arrays = weights(quantized, trained)
    layers = {name for name, weight in trained.model.named_parameters() if weight.ndim > 1}
    assert set(arrays) == {name.removesuffix(".weight") for name in layers}
    assert {name for name, array in arrays.items() if array.dtype == np.float32} == FLOAT
    for array in arrays.values():
        if array.dtype != np.float32:
            assert array.dtype == np.int8 and array.min() >= -64 and 60 < array.max() <= 64  # of 7 bits, all are used


def test_weights_have_a_scale_per_channel_and_products_a_float_output(quantized: Path) -> None:
    graph = onnx.load(str(quantized)).graph
    arrays = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    counts = {"Conv": 0, "Gemm": 0, "MatMul": 0}
    for node in graph.node:
        source = producers.get(node.input[1]) if node.op_type in counts else None
        if source is not None and source.op_type == "DequantizeLinear" and source.input[0] in arrays:
            counts[node.op_type] += 1
            channels = arrays[source.input[0]].shape[0 if node.op_type == "Conv" else 1]
            assert arrays[source.input[1]].shape == (channels,)
            assert (node.output[0] in rounded) == (node.op_type == "Conv")
    assert counts == {"Conv": 20 + 4 + 4 + 5, "Gemm": 2, "MatMul": 0}  # of R18, FPN, RPN on five levels; the head


def test_no_product_of_the_roi_arithmetic_is_rounded(parts: Parts) -> None:
    tensors = {tensor for node in parts.nodes for tensor in node.tensors}
    assert set(parts.ranges.keys()) == tensors
    graph = onnx.load(str(parts.prepared)).graph
    products = [node for node in graph.node if node.op_type == "MatMul"]  # gathers: both operands depend on the image
    assert products and not any({*node.input, *node.output} & tensors for node in products)


def test_layers_that_predict_offsets_remain_float(exported: Path, trained: TrainedModel, parts: Parts) -> None:
    names = {weight: name.replace("box_head.fc1", "roi_pool.offset.0") for weight, name in layer_names(trained).items()}
    nodes = int8.find_nodes(exported, parts.prepared, names)
    assert [node.layer for node in parts.nodes if node not in nodes] == ["box_head.fc1"]


def test_ranges_are_the_extremes_of_all_images(parts: Parts) -> None:
    pixels = np.stack([values["image"] for values in parts.inputs])
    assert [value.item() for value in parts.ranges["image"].range_value] == [pixels.min(), pixels.max()]


def test_the_detections_are_about_the_same(exported: Path, quantized: Path, images: list[Path]) -> None:
    before, after = Detector.load(exported), Detector.load(quantized)
    assert len(before(images[0]).above(0.5).boxes) > 5
    assert 0.8 < agreement(before, images)(after) <= 1
    assert after.class_names == ["a", "b", "c"] and after.preprocess == before.preprocess


def test_the_file_is_smaller_standard_and_says_how_it_was_made(exported: Path, quantized: Path) -> None:
    assert quantized.stat().st_size < 0.35 * exported.stat().st_size
    model, source = onnx.load(str(quantized)), onnx.load(str(exported))
    assert model.opset_import == source.opset_import and {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert (model.producer_name, model.producer_version) == (source.producer_name, source.producer_version)
    made = json.loads(metadata(quantized).pop("ppdet_lite_int8"))
    assert made["AP"] == {"float32": 0.5, "int8": 0.5} and made["calibration_images"] == 4 and made["left_out"] == []
    assert set(metadata(quantized)) == {"ppdet_lite", "ppdet_lite_int8"}


def test_the_damaged_layer_is_found(parts: Parts) -> None:
    """A range that is a thousand times too large leaves no steps for its values."""
    inputs = parts.inputs[:1]
    sound = int8.damage(parts.prepared, parts.nodes, parts.ranges, inputs)
    assert set(sound) == {node.layer for node in parts.nodes} and 1e-4 < max(sound.values()) < 0.2
    (chosen,) = (node for node in parts.nodes if node.layer == "backbone.res3.1.conv2.conv")
    ranges = copy.deepcopy(parts.ranges)
    extremes = ranges[chosen.tensors[-1]]
    extremes.lowest, extremes.highest = extremes.lowest * 1000, extremes.highest * 1000
    damaged = int8.damage(parts.prepared, parts.nodes, ranges, inputs)
    assert damaged.pop(chosen.layer) > 0.9
    assert damaged == pytest.approx({layer: value for layer, value in sound.items() if layer != chosen.layer}, rel=0.1)


def test_the_second_attempt_leaves_out_the_most_damaged_layers(
    file: Path, trained: TrainedModel, images: list[Path], parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "quant_pre_process", lambda source, path, **_: shutil.copy(parts.prepared, path))
    monkeypatch.setattr(int8, "calibrate", lambda *_: parts.ranges)
    monkeypatch.setattr(int8, "damage", lambda *_: {"box_head.fc1": 2.0, **dict.fromkeys("abcdefghij", 1.0), "k": 3.0})
    quantize_file(trained, file, int8.Int8(images, falling(0.5, 0.489, 0.491), max_loss=0.01))
    assert weights(file, trained)["box_head.fc1"].dtype == np.float32
    assert weights(file, trained)["box_head.fc2"].dtype == np.int8
    assert json.loads(metadata(file)["ppdet_lite_int8"])["left_out"] == ["box_head.fc1", "k"]  # a tenth, rounded up


def test_a_file_that_detects_worse_is_refused(
    exported: Path,
    trained: TrainedModel,
    images: list[Path],
    parts: Parts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An earlier export stays."""
    monkeypatch.setattr(int8, "quant_pre_process", lambda source, path, **_: shutil.copy(parts.prepared, path))
    monkeypatch.setattr(export_module, "_write", lambda trained, folder, format: shutil.copy(exported, folder))
    monkeypatch.setattr(int8, "calibrate", lambda *_: None)
    monkeypatch.setattr(int8, "_write", lambda prepared, path, nodes, ranges: shutil.copy(exported, path))
    monkeypatch.setattr(int8, "damage", lambda *_: {"a": 1.0})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.onnx").write_bytes(b"earlier")
    worse = int8.Int8(images, falling(0.5, 0.45, 0.48), "agreement", max_loss=0.01)
    with pytest.raises(
        RunFailed, match=r"int8: agreement falls from 0\.5000 to 0\.4800, by more than 0\.01, also"
    ) as caught:
        export(trained, tmp_path / "model", images[:1], "onnx", worse)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "model.onnx"]
    assert (tmp_path / "model" / "model.onnx").read_bytes() == b"earlier"


@pytest.mark.parametrize(("seconds", "warned"), [(0.9, False), (1.0, True)])
def test_it_is_reported_when_no_time_is_saved(
    exported: Path, seconds: float, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = iter(np.cumsum([0, 1, 0, seconds] * (int8.TIMED_RUNS + 1)).tolist())
    monkeypatch.setattr(int8.time, "perf_counter", lambda: next(times))
    detector = SimpleNamespace(source=str(exported), network=SimpleNamespace(run=lambda inputs: None))
    caplog.set_level("INFO")
    int8._report((detector, detector), {}, "AP 0.5 -> 0.5")
    assert f"1.000 -> {seconds:.3f} s per image on this processor, {seconds:.2f} of the time" in caplog.text
    assert ("int8 saves no time on this processor" in caplog.text) == warned
