"""Benchmarks of training steps and their phases, of inference before and after export, and of the loader.

Images are noise, and models have random weights (`random_model`) unless the config sets `weights`. The cost is that of
real images and weights, except in the last NMS, which has almost no input.
"""

import importlib.util
import os
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import paddle
from paddle import nn

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.assembly.setup import build_model, use_device
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.benchmarks.loader import bench_data
from ppdet_lite.benchmarks.timing import WARM_UP, summary, time_alternately
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.runtime import peak_rss_mb
from ppdet_lite.data.loading.transforms import Preprocess, Sample, collate
from ppdet_lite.deployment import onnx_export
from ppdet_lite.deployment.description import Description
from ppdet_lite.deployment.export import save_graph
from ppdet_lite.deployment.onnx_predictor import ONNX_FILE, OnnxPredictor, OpenVinoPredictor
from ppdet_lite.deployment.predictor import Predictor
from ppdet_lite.modeling.amp import (
    Precision,
    autocast_forward,
    bfloat16_layers,
    require_amp_support,
    require_precision_support,
)
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.residual import BasicBlock, Bottleneck
from ppdet_lite.optimization.optimizer import clip_gradients, freeze

BOXES = 8  # objects per synthetic image, about the mean of COCO
PAUSE = 0.3  # seconds between measurements, in which the threads of the last one become idle
PHASES = ("data", "forward", "backward", "optimizer")
Report = dict[str, Any]


def random_model(config: Config, classes: Sequence[str], for_training: bool = True) -> FasterRCNN:
    """Build a model with random weights that proposes as many boxes as a trained one, at any depth.

    Frozen norms with random weights normalize nothing. If each residual block added to the features, those of a deep
    backbone would be so large that, clipped to the image, all boxes are the same. Here each block computes only its
    shortcut (Goyal et al. 2017, section 5.1), in the same time.
    """
    model = build_model(config, classes, for_training)
    for block in model.sublayers():
        if isinstance(block, BasicBlock | Bottleneck):
            last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
            nn.initializer.Constant(0.0)((last.conv if last.norm is None else last.norm).weight)
    return model


def bench_train(config: Config, size: tuple[int, int], batch: int, iterations: int, classes: int = 80) -> Report:
    """Time training steps on synthetic images of size (h, w), from uint8 pixels to updated weights.

    Returns `step_seconds` and, for each of PHASES, `<phase>_seconds`: median, min and max; and the peak memory.
    "data" is normalization, padding and conversion to tensors, without decoding. For a model with a mimicking branch
    also returns `mimic_rois`, the number of patches per image. With random weights few RoIs are foreground;
    model.mimic.rois=both uses the maximum number of patches.
    """
    model = random_model(config, _class_names(classes))
    freeze(model, config["train"]["freeze"])
    model.train()
    optimizer = build(config["optimizer"]).build(model)  # learning rate 0: the same cost, without divergence
    samples = [_sample(np.random.default_rng(i), size, classes, model.needs_originals) for i in range(batch)]
    preprocess = build(config["data"]["preprocess"])
    patch_counts, amp = [], config["train"]["amp"]
    require_amp_support(amp, config.origin("train.amp"))

    def step() -> list[float]:
        marks = [_now()]
        arguments = training_arguments(collate(samples, preprocess))
        marks.append(_now())
        with bfloat16_layers(model, amp):
            with autocast_forward(amp):
                output = model(*arguments)
            loss = sum(output.losses.values())
            marks.append(_now())
            loss.backward()
        marks.append(_now())
        clip_gradients(model, None)  # as in training, where the norm is checked
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        marks.append(_now())
        if "mimic_rois" in output.metrics:
            patch_counts.append(output.metrics["mimic_rois"].item())
        return marks

    marks = np.array([step() for _ in range(WARM_UP + iterations)])[WARM_UP:]  # [iterations, len(PHASES) + 1] seconds
    phases = dict(zip(PHASES, np.diff(marks, axis=1).T, strict=True))
    return {
        "step_seconds": summary(marks[:, -1] - marks[:, 0]),
        **{f"{name}_seconds": summary(seconds) for name, seconds in phases.items()},
        **({"mimic_rois": float(np.median(patch_counts))} if patch_counts else {}),
        **_settings(size, batch, iterations),
    }


def bench_infer(config: Config, size: tuple[int, int], batch: int, iterations: int, classes: int = 80) -> Report:
    """Time detection with a model in Paddle, exported, and exported as ONNX, all on the CPU; size is (h, w).

    The measurements alternate, so that other load on the machine affects all. Returns `training_side` (the model in
    Paddle), `exported`, `onnx` and, if it is installed, `openvino` (it runs the ONNX file), each with `step_seconds`;
    `ratio`, `onnx_ratio` and `openvino_ratio`, their medians relative to `training_side`; and the peak memory. If
    packages for ONNX are missing, `onnx` is a message that names them.
    """
    paddle.set_device("cpu")
    if config["weights"] is None:
        model = random_model(config, _class_names(classes), for_training=False)
        model.eval()
    else:
        model = load_trained(config).model
    precision = config["runtime"]["precision"]
    require_precision_support(precision, config.origin("runtime.precision"))
    samples = [_sample(np.random.default_rng(i), size, classes) for i in range(batch)]
    preprocess = build(config["data"]["preprocess"])
    network_input = collate(samples, preprocess)
    arrays = [network_input[key] for key in ("images", "image_sizes", "scales")]
    missing = {}
    try:
        onnx_export.require_packages()
    except UserError as error:
        missing["onnx"] = str(error)
    networks = {
        "training_side": partial(_detect, model, precision),
        **export_predictors(model, preprocess, onnx=not missing),
    }
    functions = {name: partial(run, *arrays) for name, run in networks.items()}
    seconds = time_alternately(functions, iterations, _now, PAUSE)
    summaries = {name: summary(values) for name, values in seconds.items()}
    ratios = {name: times["median"] / summaries["training_side"]["median"] for name, times in summaries.items()}
    return {
        **{name: {"step_seconds": times} for name, times in summaries.items()},
        **missing,
        "ratio": ratios["exported"],
        **{f"{name}_ratio": ratio for name, ratio in ratios.items() if name in ("onnx", "openvino")},
        **_settings(size, batch, iterations),
    }


def export_predictors(model: FasterRCNN, preprocess: Preprocess, onnx: bool) -> dict[str, Predictor | OnnxPredictor]:
    """Return predictors `exported` and, with `onnx`, `onnx` and `openvino` of a model in evaluation mode.

    `openvino` is left out if it is not installed. The files are deleted.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_graph(model, folder)
        predictors: dict[str, Predictor | OnnxPredictor] = {"exported": Predictor(folder)}
        if onnx:
            classes = _class_names(model.predictor.num_classes)
            description = Description(classes, list(range(len(classes))), preprocess, model.postprocess, {})
            onnx_export.save_onnx(folder, folder / ONNX_FILE, description)
            predictors["onnx"] = OnnxPredictor(folder / ONNX_FILE)
            if importlib.util.find_spec("openvino") is not None:
                predictors["openvino"] = OpenVinoPredictor(folder / ONNX_FILE)
        return predictors


def run(
    name: Literal["train", "infer", "data", "ops"],
    config: Config | None,
    iterations: int,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    classes: int = 80,
    workers: int = 0,
) -> Report:
    """Run a benchmark by name on the config's device; `ops` does not require a config.

    size: (h, w); None is 320x427 for training and 640x640 for inference.
    """
    if name == "ops":
        from ppdet_lite.benchmarks import operators

        return operators.run(iterations)
    use_device(config)
    if name == "data":
        return bench_data(config, iterations, workers=workers)
    if name == "train":
        return bench_train(config, size or (320, 427), batch, iterations, classes)
    return bench_infer(config, size or (640, 640), batch, iterations, classes)


def format_report(report: Report, indent: str = "") -> str:
    """Format a report as aligned lines of text, with times in milliseconds."""
    lines = []
    for name, value in report.items():
        if isinstance(value, dict) and "median" in value:
            numbers = "  ".join(f"{key} {seconds * 1e3:.1f}" for key, seconds in value.items())
            lines.append(f"{indent}{name.removesuffix('_seconds'):<26} {numbers}  ms")
        elif isinstance(value, dict):
            lines += [f"{indent}{name}", format_report(value, indent + "  ")]
        else:
            lines.append(f"{indent}{name:<26} {f'{value:.3g}' if isinstance(value, float) else value}")
    return "\n".join(lines)


def _class_names(count: int) -> list[str]:
    return [f"c{i}" for i in range(count)]


def _sample(rng: np.random.Generator, size: tuple[int, int], classes: int, keep_original: bool = False) -> Sample:
    """Return a sample of noise with random boxes, as the loader would return it."""
    corners = rng.uniform(0, 1, (BOXES, 2, 2)) * size[::-1]
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    return {
        "image": image,
        "image_id": 0,
        "image_size": np.array(size, np.float32),
        "original_size": np.array(size, np.float32),
        "scale": np.ones(2, np.float32),
        "gt_boxes": np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32),
        "gt_classes": rng.integers(0, classes, BOXES),
        "gt_is_crowd": np.zeros(BOXES, bool),
        **({"original_image": image, "flipped": False} if keep_original else {}),
    }


def _detect(model: FasterRCNN, precision: Precision, *arrays: np.ndarray) -> np.ndarray:
    with paddle.no_grad(), bfloat16_layers(model, precision):
        return model(*map(paddle.to_tensor, arrays)).boxes.numpy()


def _now() -> float:
    """Return the time in seconds after synchronizing with the device."""
    if paddle.get_device() != "cpu":
        paddle.device.synchronize()
    return time.perf_counter()


def _settings(size: tuple[int, int], batch: int, iterations: int) -> Report:
    return {
        "peak_rss_mb": peak_rss_mb(),
        "size": list(size),
        "batch": batch,
        "iterations": iterations,
        "device": paddle.get_device(),
        "threads": int(os.environ["OMP_NUM_THREADS"]),
    }
