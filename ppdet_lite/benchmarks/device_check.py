"""Comparison of two devices: the results of single operators, then of whole training steps.

`ppdet-lite env-check --gpu` compares a GPU with the CPU. For operators with a separate CPU implementation
(`ops.dispatch`), this also compares the two implementations.
"""

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.static import InputSpec

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.data.synthetic.shapes import generate
from ppdet_lite.modeling.amp import AmpDtype, autocast_forward, bfloat16_layers
from ppdet_lite.modeling.anchors import AnchorGenerator
from ppdet_lite.modeling.matching import Matcher, Sampler
from ppdet_lite.modeling.rpn import RPN
from ppdet_lite.ops import deform_conv2d, deform_roi_pool
from ppdet_lite.ops.crop import crop_and_resize
from ppdet_lite.ops.nms import grouped_nms
from ppdet_lite.ops.roi_align import pyramid_roi_align
from ppdet_lite.structures import Rois, Targets

Numbers = dict[str, np.ndarray]
CONFIG = "quickstart/shapes_r18_fpn"  # a recipe of the package
PACKAGE = Path(__file__).resolve().parents[1]
SIZE = (64, 96)  # (h, w) of images in a training step


class Check(NamedTuple):
    """A computation to run on both devices."""

    run: Callable[[], Numbers]
    tolerance: float  # of the largest difference, relative to the largest value; integers must be equal


class Result(NamedTuple):
    """The largest difference between two devices."""

    difference: float  # relative to the largest value
    worst: str  # the output that differs most
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance."""
        return self.difference <= self.tolerance  # False for NaN


def compare(name: str, device: str, tf32: bool = False) -> Result:
    """Run one of CHECKS on the CPU and on a device; return the largest difference. The current device is restored.

    tf32: whether matrix products on the device may round their factors, which increases the tolerance of some checks.
    """
    check, current = CHECKS[name], paddle.device.get_device()
    results = []
    try:
        for used in ("cpu", device):
            paddle.set_device(used)
            paddle.seed(0)
            results.append(check.run())
    finally:
        paddle.set_device(current)
    differences = {key: _difference(value, results[1][key]) for key, value in results[0].items()}
    worst = max(differences, key=lambda key: np.nan_to_num(differences[key], nan=np.inf))
    tolerance = TF32_TOLERANCES.get(name, check.tolerance) if tf32 else check.tolerance
    return Result(differences[worst], worst, tolerance)


def _difference(expected: np.ndarray, actual: np.ndarray) -> float:
    if expected.shape != actual.shape:
        return np.inf
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(expected, actual) else np.inf
    difference = np.abs(expected - actual).max(initial=0.0)
    return float(difference / max(np.abs(expected).max(initial=0.0), 1e-6))


def _noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _boxes(seed: int, count: int, height: float = 60.0, width: float = 90.0) -> np.ndarray:
    corners = np.random.default_rng(seed).uniform(0, 1, (count, 2, 2)) * (width, height)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1) + 1], axis=1).astype(np.float32)


def _with_gradients(function: Callable[..., Tensor], **inputs: np.ndarray) -> Numbers:
    """Return a function's result and the gradients of its inputs, for a random gradient of the result."""
    leaves = {name: paddle.to_tensor(value, stop_gradient=False) for name, value in inputs.items()}
    result = function(**leaves)
    gradients = paddle.grad(result, list(leaves.values()), paddle.to_tensor(_noise(99, *result.shape)))
    named = {f"gradient of {name}": gradient.numpy() for name, gradient in zip(leaves, gradients, strict=True)}
    return {"result": result.numpy(), **named}


def _convolution() -> Numbers:
    return _with_gradients(
        functools.partial(F.conv2d, stride=2, padding=1), x=_noise(0, 2, 16, 33, 40), weight=_noise(1, 24, 16, 3, 3)
    )


def _norms() -> Numbers:
    x, scale, shift = _noise(0, 2, 32, 13, 17), _noise(1, 32), _noise(2, 32)

    def frozen(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        statistics = paddle.zeros([32]), paddle.full([32], 2.0)
        return F.batch_norm(x, *statistics, weight, bias, training=False, use_global_stats=True)

    def batch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.batch_norm(x, paddle.zeros([32]), paddle.ones([32]), weight, bias, training=True)

    def group(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.group_norm(x, 8, weight=weight, bias=bias)

    return {
        f"{norm.__name__} norm, {key}": value
        for norm in (frozen, batch, group)
        for key, value in _with_gradients(norm, x=x, weight=scale, bias=shift).items()
    }


def _matching() -> Numbers:
    boxes = paddle.to_tensor(_boxes(0, 500))
    targets = Targets(paddle.to_tensor(_boxes(1, 6)), paddle.arange(6), paddle.to_tensor(_boxes(2, 2)))
    labels, index = Matcher(0.5, 0.4, keep_best=True)(boxes, targets)
    ((foreground, background),) = Sampler(1000, 0.5)([labels])  # large enough to sample all anchors
    parts = {"labels": labels, "index": index, "foreground": foreground, "background": background}
    return {name: part.numpy() for name, part in parts.items()}


def _nms() -> Numbers:
    """Return the kept boxes of many groups, which take several calls on both devices, of few groups, and of no boxes.

    Each is computed in eager mode and by a traced graph.
    """

    def suppress(boxes: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        return grouped_nms(boxes, scores, groups, 0.5)

    inputs = [InputSpec([-1, 4], "float32"), InputSpec([-1], "float32"), InputSpec([-1], "int64")]
    functions = {"eager": suppress, "traced": paddle.jit.to_static(suppress, inputs, full_graph=True)}
    results = {}
    for count, group_count in ((9000, 50), (3000, 5), (0, 1)):
        scores = np.random.default_rng(3).permutation(count).astype(np.float32)
        groups = np.random.default_rng(4).integers(0, group_count, count)
        tensors = [paddle.to_tensor(values) for values in (_boxes(0, count), scores, groups)]
        for name, function in functions.items():
            results[f"kept of {count}, {name}"] = function(*tensors).numpy()
    return results


def _proposals() -> Numbers:
    rpn = RPN(8, [4, 8], AnchorGenerator((8, 16)), pre_nms_train=150, post_nms_train=100)
    shapes = [(2, 8, 15, 22), (2, 8, 8, 11)]
    anchors = rpn.make_anchors([paddle.zeros(shape) for shape in shapes])
    scores = np.random.default_rng(0).permutation(2 * sum(len(a) for a in anchors)).astype(np.float32)
    logits = paddle.to_tensor(scores.reshape(2, -1)).split([len(a) for a in anchors], axis=1)
    deltas = [paddle.to_tensor(0.3 * _noise(i, 2, len(a), 4)) for i, a in enumerate(anchors)]
    rois = rpn.propose(anchors, logits, deltas, paddle.to_tensor([[60.0, 88.0], [50.0, 80.0]]))
    return {"boxes": rois.boxes.numpy(), "counts": rois.counts.numpy()}


def _rois() -> tuple[Rois, Tensor]:
    boxes = np.concatenate([_boxes(5, 20, 60, 90), _boxes(6, 10, 60, 90)])
    level = np.random.default_rng(7).integers(0, 2, 30)
    return Rois(paddle.to_tensor(boxes), paddle.to_tensor([20, 10], dtype="int32")), paddle.to_tensor(level)


def _roi_align() -> Numbers:
    def pool(fine: Tensor, coarse: Tensor) -> Tensor:
        rois, level = _rois()
        return pyramid_roi_align([fine, coarse], [4, 8], rois, level, 3, 0, True)

    return _with_gradients(pool, fine=_noise(0, 2, 8, 15, 23), coarse=_noise(1, 2, 8, 8, 12))


def _deform_conv() -> Numbers:
    inputs = {
        "x": _noise(0, 2, 8, 13, 15),
        "offset": 2 * _noise(1, 2, 36, 13, 15),
        "weight": _noise(2, 6, 8, 3, 3),
        "mask": np.abs(_noise(3, 2, 18, 13, 15)),
    }
    return _with_gradients(functools.partial(deform_conv2d, padding=1, deformable_groups=2), **inputs)


def _deform_roi_pool() -> Numbers:
    def pool(fine: Tensor, coarse: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        rois, level = _rois()
        scales = [1 / 4, 1 / 8]
        return deform_roi_pool([fine, coarse], *rois[:2], 3, scales, 0, 0.1, offset, mask, level=level)

    maps = {"fine": _noise(0, 2, 8, 15, 23), "coarse": _noise(1, 2, 8, 8, 12)}
    return _with_gradients(pool, **maps, offset=_noise(2, 30, 2, 3, 3), mask=np.abs(_noise(3, 30, 1, 3, 3)))


def _crop() -> Numbers:
    boxes = np.concatenate([_boxes(0, 5), _boxes(1, 1)[:, [2, 1, 0, 3]]])  # the last box is flipped
    return {"patches": crop_and_resize(paddle.to_tensor(_noise(2, 3, 60, 90)), paddle.to_tensor(boxes), 16).numpy()}


def _step(amp: AmpDtype | None) -> Numbers:
    """Return losses and gradient norms of a small deformable detector. All anchors and RoIs are sampled."""
    options = [
        "model.backbone={norm: gn, frozen_stages: 0, deformable: {stages: [5]}}",
        "model.neck.out_channels=64",
        "model.box_head.width=64",
        "model.rpn={sampler: {count: 100000}, pre_nms_train: 200, post_nms_train: 100}",
        "model.roi_sampler={sampler: {count: 100000, foreground_share: 1.0}}",
        "model.roi_pool={type: DeformRoIPool, modulated: true, hidden: 32}",
    ]
    model = build_model(load_config(CONFIG, options), ["square", "circle", "triangle"])
    for i, parameter in enumerate(model.parameters()):  # the random generators of devices differ
        if parameter.ndim > 1:
            scale = float(np.sqrt(1 / np.prod(parameter.shape[1:])))
            parameter.set_value(scale * _noise(i, *parameter.shape))
    model.train()
    if amp == "float16" and paddle.device.get_device() == "cpu":
        amp = None  # not supported on a CPU: the reference is float32
    with bfloat16_layers(model, amp):
        with autocast_forward(amp):
            losses = model(*training_arguments(_batch())).losses
        sum(losses.values()).backward()
    parts = {"backbone": model.backbone, "neck": model.neck, "rpn": model.rpn, "box head": model.box_head}
    norms = {f"gradient norm of {name}": _gradient_norm(part.parameters()) for name, part in parts.items()}
    return {**{name: loss.numpy() for name, loss in losses.items()}, **norms}


def _gradient_norm(parameters: Sequence[Tensor]) -> np.ndarray:
    squares = [np.square(p.grad.astype("float32").numpy()).sum() for p in parameters if p.grad is not None]
    return np.sqrt(np.float32(sum(squares)))


def _batch() -> dict[str, Any]:
    height, width = SIZE
    objects = {"boxes": _boxes(3, 4, height, width), "classes": np.arange(4) % 3, "is_crowd": np.zeros(4, bool)}
    nothing = {"boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, int), "is_crowd": np.zeros(0, bool)}
    return {
        "images": _noise(0, 2, 3, height, width),
        "image_sizes": np.float32([[height, width], [height - 14, width]]),
        "scales": np.ones((2, 2), np.float32),
        "targets": [objects, nothing],
    }


CHECKS = {
    "convolution": Check(_convolution, 1e-4),
    "norms": Check(_norms, 1e-4),
    "matching": Check(_matching, 0.0),
    "nms": Check(_nms, 0.0),
    "proposals": Check(_proposals, 1e-5),
    "roi_align": Check(_roi_align, 1e-4),
    "deform_conv": Check(_deform_conv, 1e-4),
    "deform_roi_pool": Check(_deform_roi_pool, 1e-4),
    "crop": Check(_crop, 1e-5),
    # rounding moves samples over pixel borders, where gradients jump: input noise of 1e-6 changes their norms by 2e-3
    "step": Check(functools.partial(_step, None), 1e-2),
    "bfloat16": Check(functools.partial(_step, "bfloat16"), 0.1),
    "float16": Check(functools.partial(_step, "float16"), 0.1),
}
# Tolerances with TF32, by check: only convolutions, matrix products and what follows from them may become less exact.
TF32_TOLERANCES = {"convolution": 1e-2, "deform_conv": 1e-2, "step": 0.1}
TF32_CHECKS = ("convolution", "proposals", "roi_align", "deform_conv", "deform_roi_pool", "crop", "step")
TF32 = "tf32"  # the check that runs TF32_CHECKS in a process in which TF32 is not switched off
PROCESSES = "processes"  # the check that trains with two processes, without a comparison


def require_gpu() -> None:
    """Raise UserError, with a remedy, if Paddle cannot use a GPU."""
    if not paddle.is_compiled_with_cuda():
        raise UserError("this Paddle is a CPU build: make setup GPU=cu126, or see requirements-gpu.txt")
    if not paddle.device.cuda.device_count():
        raise UserError("Paddle finds no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES")


def check_device(names: Sequence[str], device: str) -> Iterator[str]:
    """Run the named checks, or all if `names` is empty, and yield a line of text after each.

    Raises UserError for an unknown name. Raises RunFailed after the last check if one of them failed.
    """
    known = [*CHECKS, TF32, PROCESSES]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{unknown[0]}: unknown check; choose from {', '.join(known)}")
    failed = []
    for name in names or known:
        result = _run_check(name, device)
        yield f"{name:<16} {result}"
        if not result.startswith(("same", "skipped")):
            failed.append(name)
    if failed:
        raise RunFailed(f"{device} failed {len(failed)} of {len(names or known)} checks: {', '.join(failed)}")


def _run_check(name: str, device: str) -> str:
    """Run a check and describe its result, which starts with "same", "skipped", "DIFFERS" or "fails"."""
    if name == PROCESSES:
        return train_two(device)
    if name == TF32:
        return check_with_tf32(device)
    if name in ("bfloat16", "float16") and device != "cpu" and not getattr(paddle.amp, f"is_{name}_supported")():
        return f"skipped: {device} does not support {name}"
    try:  # an error of Paddle, such as a missing kernel, is reported as a failed check
        result = compare(name, device)
    except (RuntimeError, ValueError, OSError, NotImplementedError) as error:
        return f"fails: {(str(error).strip() or type(error).__name__).splitlines()[-1]}"
    verdict = "same" if result.agrees else f"DIFFERS in {result.worst}"
    return f"{verdict}: difference {result.difference:.1e}, tolerance {result.tolerance:g}"


def check_with_tf32(device: str, names: Sequence[str] = TF32_CHECKS) -> str:
    """Run checks in a process with TF32 as it is by default, and describe the result."""
    environment = {name: value for name, value in os.environ.items() if name != "NVIDIA_TF32_OVERRIDE"}
    command = [sys.executable, "-m", "ppdet_lite.benchmarks.device_check", device, *names]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=PACKAGE.parent)
    lines = done.stdout.splitlines()
    failed = [" ".join(line.split()) for line in lines if not line.split(maxsplit=1)[1].startswith("same")]
    if done.returncode or len(lines) != len(names):
        return f"fails: {(done.stderr.strip() or 'no output').splitlines()[-1]}"
    return f"DIFFERS in {failed[0]}" if failed else f"same: {len(names)} checks with TF32 as it is by default"


def train_two(device: str) -> str:
    """Train for two iterations in two processes, each on its own GPU, and describe the result."""
    if device != "cpu" and paddle.device.cuda.device_count() < 2:
        return "skipped: only one GPU"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder / "shapes", train=4, val=1)
        shapes, annotations = folder / "shapes", folder / "shapes/annotations"
        sets = [
            f"data.{part}={{images: {shapes}/{part}, annotations: {annotations}/instances_{part}.json}}"
            for part in ("train", "val")
        ]
        command = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", name]
        command += ["--backend", "gloo"] if device == "cpu" else []
        command += [str(PACKAGE / "__main__.py"), "train", "-c", CONFIG, "-o", f"output={folder}"]
        command += [*sets, "data.preprocess={short_side: 64, long_side: 96}", "train.rehearse=false"]
        command += ["data.loader={batch_size: 1, threads: 0}", "train={length: 2 iterations, evaluate_every: null}"]
        paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": paths}  # also when the package is not installed
        command += [f"runtime.device={device}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            logs = [line for log in sorted(folder.glob("workerlog.*")) for line in log.read_text().splitlines()]
            errors = [line for line in logs if "rror: " in line] or logs or done.stderr.splitlines()
            return f"fails: {errors[0]}"
    return "same: two processes trained two iterations"


if __name__ == "__main__":  # for `check_with_tf32`
    for check_name in sys.argv[2:]:
        outcome = compare(check_name, sys.argv[1], tf32=True)
        print(f"{check_name} {'same' if outcome.agrees else outcome}")
