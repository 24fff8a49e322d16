"""Inference of an exported ONNX file on the CPU, with ONNX Runtime or OpenVINO."""

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.deployment.description import SECTION, from_json
from ppdet_lite.deployment.graph_inputs import graph_inputs

ONNX_FILE = "model.onnx"


class OnnxPredictor:
    """Runs an ONNX file that `export` wrote, with ONNX Runtime in OMP_NUM_THREADS threads.

    description: the description in the file's metadata.

    Raises UserError if the runtime is missing or too old, or if the file is not ONNX or from another program.
    """

    def __init__(self, path: Path) -> None:
        metadata = self._open(Path(path), int(os.environ["OMP_NUM_THREADS"]))
        if SECTION not in metadata:
            raise UserError(f"{path}: an ONNX file of another program; write one with ppdet-lite export-model")
        self.description = from_json(metadata[SECTION], str(path))

    def __call__(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        scales: np.ndarray,
        original_sizes: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `Predictor.__call__`."""
        stride = self.description.preprocess.stride
        return self.run(graph_inputs(images, image_sizes, scales, original_sizes, stride))

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run the graph on its inputs, see `graph_inputs`."""
        rows, counts = self._session.run(None, inputs)
        return rows, counts

    def _open(self, path: Path, threads: int) -> Mapping[str, str]:
        """Prepare the graph for `run`; return the file's metadata."""
        runtime = _import_runtime("onnxruntime", path, "ONNX files need onnxruntime: pip install onnxruntime")
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.log_severity_level = 3  # errors
        try:
            self._session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base class
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            reason = " ".join(str(error).split())
            if type(error).__name__ == "NotImplemented":
                raise UserError(
                    f"{path}: onnxruntime {runtime.__version__} is too old for this file: {reason}"
                ) from error
            raise UserError(f"{path}: not an ONNX file, or damaged: {reason}") from error
        return self._session.get_modelmeta().custom_metadata_map


class OpenVinoPredictor(OnnxPredictor):
    """Runs an ONNX file with OpenVINO, in float32.

    By default, OpenVINO computes in bfloat16 where the processor can. It then also rounds the arithmetic on boxes,
    which moves them by pixels.
    """

    def run(self, inputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Run the graph on its inputs, see `graph_inputs`."""
        results = self._model(dict(inputs))
        return results[0], results[1]

    def _open(self, path: Path, threads: int) -> Mapping[str, str]:
        remedy = "pip install openvino, or use the runtime onnxruntime"
        runtime = _import_runtime("openvino", path, f"the runtime openvino is not installed: {remedy}")
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            core = runtime.Core()
            graph = core.read_model(str(path))
            for operator in graph.get_ops():
                if operator.get_type_name() == "TopK":  # as in ONNX, of equal values the first precedes
                    operator.set_attribute("stable", True)
            self._model = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: not an ONNX file, damaged, or not supported by OpenVINO: {reason}") from error
        place = ["framework", SECTION]
        return {SECTION: graph.get_rt_info(place).astype(str)} if graph.has_rt_info(place) else {}


RUNTIMES = {"onnxruntime": OnnxPredictor, "openvino": OpenVinoPredictor}


def _import_runtime(name: str, path: Path, message: str) -> ModuleType:
    """Import the package of a runtime. Raises UserError if it or the file does not exist."""
    try:
        runtime = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: {message}") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file; write one with ppdet-lite export-model --format onnx")
    return runtime
