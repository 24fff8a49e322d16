"""Inference of an exported ONNX file with ONNX Runtime on the CPU."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.deployment.description import SECTION, from_json
from ppdet_lite.deployment.graph_inputs import graph_inputs

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

ONNX_FILE = "model.onnx"


class OnnxPredictor:
    """Runs an ONNX file that `export` wrote.

    threads: number of CPU threads; None: OMP_NUM_THREADS.
    description: the description in the file's metadata.

    Raises UserError if ONNX Runtime is missing or too old, or if the file is not ONNX or from another program.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        self._session = _session(Path(path), threads or int(os.environ["OMP_NUM_THREADS"]))
        metadata = self._session.get_modelmeta().custom_metadata_map
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
        rows, counts = self._session.run(None, graph_inputs(images, image_sizes, scales, original_sizes, stride))
        return rows, counts


def _session(path: Path, threads: int) -> "InferenceSession":
    try:
        import onnxruntime as runtime
    except ModuleNotFoundError as error:
        raise UserError(f"{path}: ONNX files need {error.name}: pip install onnxruntime") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file; write one with ppdet-lite export-model --format onnx")
    settings = runtime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3  # errors
    try:
        return runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base class
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        reason = " ".join(str(error).split())
        if type(error).__name__ == "NotImplemented":
            raise UserError(f"{path}: onnxruntime {runtime.__version__} is too old for this file: {reason}") from error
        raise UserError(f"{path}: not an ONNX file, or damaged: {reason}") from error
