"""Inference of an exported model with paddle.inference on the CPU."""

import os
from pathlib import Path

import numpy as np
from paddle import inference

from ppdet_lite.core.errors import UserError
from ppdet_lite.deployment.description import DESCRIPTION, from_folder
from ppdet_lite.deployment.graph_inputs import graph_inputs

GRAPH, WEIGHTS = "model.json", "model.pdiparams"
CACHED_SHAPES = 10  # limit of input shapes whose primitives oneDNN caches; without it, memory grows with every shape


class Predictor:
    """Runs an exported model from its folder, in OMP_NUM_THREADS threads.

    onednn: use oneDNN kernels, which are about twice as fast.

    Raises UserError if the folder contains no exported model or a damaged one.
    """

    def __init__(self, folder: Path, onednn: bool = True) -> None:
        for name in (GRAPH, WEIGHTS):
            if not (Path(folder) / name).is_file():
                raise UserError(f"{folder}: not an exported model: {name} is missing; use ppdet-lite export-model")
        settings = inference.Config(str(Path(folder) / GRAPH), str(Path(folder) / WEIGHTS))
        settings.disable_gpu()
        settings.disable_glog_info()
        settings.set_cpu_math_library_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        if onednn:
            settings.enable_mkldnn()
            settings.set_mkldnn_cache_capacity(CACHED_SHAPES)
        else:
            settings.disable_mkldnn()
        try:
            self._predictor = inference.create_predictor(settings)
        except (ValueError, RuntimeError) as error:  # raised by Paddle for a file that it cannot read
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: damaged or not written by this program; export it again ({reason})") from error
        self._folder = folder
        self._stride = from_folder(folder).preprocess.stride if (Path(folder) / DESCRIPTION).is_file() else None

    def __call__(
        self,
        images: np.ndarray,
        image_sizes: np.ndarray,
        scales: np.ndarray,
        original_sizes: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return detections, rows [M, 6], and the number of rows of each image, [N] int32.

        images [N, 3, H, W], image_sizes [N, 2] (h, w) before padding, scales [N, 2] (y, x) resized / original,
        original_sizes [N, 2] (h, w), to which boxes are clipped (None: image_sizes / scales, rounded); float32.
        Images whose H and W are no multiples of the network's stride are padded.
        A row is class, score, x1, y1, x2, y2, in original pixels. Rows are ordered by image, then by descending score.

        Raises UserError if the network fails and the folder contains no description with its stride.
        """
        for name, value in graph_inputs(images, image_sizes, scales, original_sizes, self._stride).items():
            self._predictor.get_input_handle(name).copy_from_cpu(value)
        try:
            self._predictor.run()
        except (ValueError, RuntimeError) as error:
            if self._stride is not None:
                raise
            reason = " ".join(str(error).split())
            hint = f"{DESCRIPTION} is missing: pad images to multiples of the model's stride"
            raise UserError(f"{self._folder}: fails on images {list(images.shape)}; {hint} ({reason})") from error
        rows, counts = (
            self._predictor.get_output_handle(name).copy_to_cpu() for name in self._predictor.get_output_names()
        )
        return rows, counts
