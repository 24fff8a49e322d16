"""ONNX files for tests."""

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.deployment.description import Description
from ppdet_lite.deployment.onnx_export import save_onnx
from ppdet_lite.deployment.onnx_predictor import OnnxPredictor
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.postprocess import Postprocess
from tests.onnx_packages import require_onnx_export


def onnx_predictor(model: FasterRCNN, folder: Path) -> OnnxPredictor:
    """The graph that `save_graph` wrote into a folder, converted, under ONNX Runtime; else the test is skipped."""
    require_onnx_export()
    names = [f"class {k}" for k in range(model.predictor.num_classes)]
    described = Description(names, list(range(1, len(names) + 1)), Preprocess(), model.postprocess, {})
    save_onnx(folder, folder / "model.onnx", described)
    return OnnxPredictor(folder / "model.onnx")


def other_programs_file(path: Path, operator: str = "Abs", kind: int = TensorProto.FLOAT, **metadata: str) -> Path:
    """Write an ONNX file of one operator; return its path."""
    values = [helper.make_tensor_value_info(name, kind, [None, None, None, None]) for name in ("x", "y")]
    inputs = ["x", "x"] if operator == "Conv" else ["x"]
    graph = helper.make_graph([helper.make_node(operator, inputs, ["y"])], "other", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    helper.set_model_props(model, metadata)
    onnx.save(model, str(path))
    return path


def described(class_names: list[str]) -> str:
    """What an export of these classes says of itself."""
    return Description(class_names, list(range(len(class_names))), Preprocess(), Postprocess(), {}).to_json()
