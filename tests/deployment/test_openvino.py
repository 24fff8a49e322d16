"""OpenVINO as the runtime of an ONNX file: its detections, its settings, and errors of one line."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from paddle import nn

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.data.synthetic.shapes import scene
from ppdet_lite.deployment.description import SECTION
from ppdet_lite.deployment.detector import Detector, select_detector
from ppdet_lite.deployment.export import export
from tests import tiny
from tests.onnx_files import described, other_programs_file
from tests.onnx_packages import require_onnx_export


class Operator:
    """A node of OpenVINO's graph."""

    def __init__(self, kind: str) -> None:
        self.kind, self.attributes = kind, {}

    def get_type_name(self) -> str:
        return self.kind

    def set_attribute(self, name: str, value: bool) -> None:
        self.attributes[name] = value


class Graph:
    """A graph with the metadata of an exported file."""

    def __init__(self, metadata: dict[str, str]) -> None:
        self.metadata, self.operators = metadata, [Operator("TopK"), Operator("Relu")]

    def get_ops(self) -> list[Operator]:
        return self.operators

    def has_rt_info(self, place: list[str]) -> bool:
        return place[0] == "framework" and place[1] in self.metadata

    def get_rt_info(self, place: list[str]) -> Any:
        return SimpleNamespace(astype=lambda kind: kind(self.metadata[place[1]]))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stub of OpenVINO that records the settings of `compile_model`."""
    recorded = SimpleNamespace(graph=Graph({SECTION: described(["cat"])}), settings=None)

    class Core:
        def read_model(self, path: str) -> Graph:
            return recorded.graph

        def compile_model(self, graph: Graph, device: str, settings: dict[str, Any]) -> Any:
            recorded.settings = {"device": device, **settings}
            return lambda inputs: {0: np.float32([[0, 0.9, 1, 2, 3, 4]]), 1: np.int32([1])}

    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=Core))
    return recorded


def test_float32_is_requested_and_ties_are_those_of_onnx(stub: SimpleNamespace, tmp_path: Path) -> None:
    """Whatever the processor of the test can: OpenVINO's own choices are bfloat16 and unordered ties."""
    detector = Detector.load(other_programs_file(tmp_path / "model.onnx"), runtime="openvino")
    assert stub.settings["INFERENCE_PRECISION_HINT"] == "f32" and stub.settings["device"] == "CPU"
    assert [operator.attributes for operator in stub.graph.operators] == [{"stable": True}, {}]
    assert detector.class_names == ["cat"]
    found = detector(np.zeros((50, 60, 3), np.uint8))
    assert found.names == ["cat"] and found.boxes.tolist() == [[1, 2, 3, 4]]


def test_a_folder_with_an_onnx_file(stub: SimpleNamespace, tmp_path: Path) -> None:
    """The runtime selects the ONNX file of a folder with both formats."""
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.onnx: no such file, which the runtime openvino needs; write it with"):
        Detector.load(tmp_path, runtime="openvino")
    other_programs_file(tmp_path / "model.onnx")
    assert Detector.load(tmp_path, runtime="openvino").class_names == ["cat"] and stub.settings


def test_a_file_of_another_program(stub: SimpleNamespace, tmp_path: Path) -> None:
    stub.graph.metadata = {}
    with pytest.raises(UserError, match=r"model\.onnx: an ONNX file of another program"):
        Detector.load(other_programs_file(tmp_path / "model.onnx"), runtime="openvino")


def test_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)  # importing it fails as if it were not installed
    path = other_programs_file(tmp_path / "model.onnx")
    with pytest.raises(UserError, match="not installed: pip install openvino, or use the runtime onnxruntime"):
        Detector.load(path, runtime="openvino")


def test_a_model_that_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not exported as ONNX, which the runtime openvino needs; write it with"):
        Detector.load(tmp_path, runtime="openvino")
    with pytest.raises(UserError, match=r"--runtime openvino runs an \.onnx file; name it with --model"):
        select_detector(None, None, "openvino")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino")
    require_onnx_export()
    model = tiny.detector()
    nn.initializer.Normal(0, 1.0)(model.predictor.classify.weight)
    nn.initializer.Normal(0, 0.3)(model.predictor.regress.weight)
    model.eval()
    trained = TrainedModel(model, ["a", "b", "c"], [1, 2, 3], Preprocess(short_side=96, long_side=160), "nowhere")
    folder = tmp_path_factory.mktemp("export") / "model"
    export(trained, folder, format="onnx")
    return folder / "model.onnx"


def test_the_detections_are_those_of_onnx_runtime(exported: Path) -> None:
    expected, actual = Detector.load(exported), Detector.load(exported, runtime="openvino")
    assert actual.network._model.get_property("INFERENCE_PRECISION_HINT").to_string() in ("f32", "float32")
    for seed, size in ((0, 160), (1, 400), (2, 97)):
        image = scene(np.random.default_rng(seed), size)[0]
        first, second = expected(image), actual(image)
        assert len(first.boxes) > 10 and second.names == first.names
        np.testing.assert_allclose(second.boxes, first.boxes, atol=1e-3)
        np.testing.assert_allclose(second.scores, first.scores, atol=1e-4)


def test_a_damaged_file(tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install openvino")
    (tmp_path / "model.onnx").write_bytes(bytes(1000))
    with pytest.raises(UserError, match="not an ONNX file, damaged, or not supported by OpenVINO") as caught:
        Detector.load(tmp_path / "model.onnx", runtime="openvino")
    assert "\n" not in str(caught.value)
