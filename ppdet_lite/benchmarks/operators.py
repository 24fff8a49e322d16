"""Benchmarks of the deformable operators, each against Paddle's own in the same run: time, and peak memory.

`python -m ppdet_lite.benchmarks.operators NAME` runs one RoI operator once in a process of its own and prints the
memory it took; `run` does that for the memory and takes the times itself.
"""

import ctypes
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor
from paddle.vision.ops import roi_align

from ppdet_lite.benchmarks.timing import WARM_UP, summary
from ppdet_lite.ops import deform_conv2d, deform_roi_pool

Report = dict[str, dict[str, float | dict[str, float]]]
Round = Callable[[], object]


def run(repeats: int) -> Report:
    """Time forward + backward of the operators, the alternatives taking turns, and measure the memory of some.

    Returns, per operator, `<name>_seconds`: median, min and max; ratios of the medians, Paddle's operator / ours; and
    for RoI pooling the peak memory above the inputs in MiB, on Linux with the GNU C library only.
    """
    conv, pool = _time(conv_rounds(), repeats), _time(pool_rounds(), repeats)
    report = {
        "deform_conv2d": {
            **_seconds(conv),
            "ratio_v1": _ratio(conv, "native_v1", "gather_v1"),
            "ratio_v2": _ratio(conv, "native_v2", "gather_v2"),
        },
        "deform_roi_pool": {
            **_seconds(pool),
            "ratio_roi_align": _ratio(pool, "roi_align", "plain"),
            "ratio_roi_align_adaptive": _ratio(pool, "roi_align_adaptive", "plain_adaptive"),
        },
    }
    if sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim"):
        report["deform_roi_pool"] |= {f"{name}_peak_mb": peak_in_child(name) for name in pool_rounds()}
    return report


def conv_rounds() -> dict[str, Round]:
    """Deformable 3x3 convolutions of both versions, 128 -> 128 channels on 1x64x64, forward and backward."""
    rng = np.random.default_rng(0)
    x, offset, weight, mask, upstream = (
        _leaf(rng.normal(0, scale, shape))
        for scale, shape in (
            (1, (1, 128, 64, 64)),
            (2, (1, 18, 64, 64)),
            (0.03, (128, 128, 3, 3)),
            (1, (1, 9, 64, 64)),
            (1, (1, 128, 64, 64)),
        )
    )

    def version(implementation: str, *mask: Tensor) -> Round:
        def both_ways() -> None:
            out = deform_conv2d(x, offset, weight, *mask, padding=1, implementation=implementation)
            paddle.grad(out, [x, offset, weight, *mask], upstream)

        return both_ways

    return {
        "native_v1": version("native"),
        "gather_v1": version("gather"),
        "native_v2": version("native", mask),
        "gather_v2": version("gather", mask),
    }


def pool_rounds() -> dict[str, Round]:
    """Pooling of 512 RoIs into 7x7 bins of 2x2 or adaptively many samples from 1x256x50x84, forward and backward."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(60), np.log(500), (512, 2)))
    corner = rng.random((512, 2)) * ([1333, 800] - size)
    boxes = paddle.to_tensor(np.concatenate([corner, corner + size], axis=1), dtype="float32")
    counts = paddle.to_tensor([512], dtype="int32")
    x, upstream = _leaf(rng.normal(size=(1, 256, 50, 84))), _leaf(rng.normal(size=(512, 256, 7, 7)))
    offset, mask = _leaf(rng.normal(size=(512, 2, 7, 7))), _leaf(rng.random((512, 1, 7, 7)))

    def ours(samples: int, **branch: Tensor) -> Round:
        def both_ways() -> None:
            out = deform_roi_pool(x, boxes, counts, 7, 1 / 16, samples, **branch)
            paddle.grad(out, [x, *branch.values()], upstream)

        return both_ways

    def paddles(samples: int) -> Round:
        return lambda: paddle.grad(roi_align(x, boxes, counts, 7, 1 / 16, samples), [x], upstream)

    return {
        "roi_align": paddles(2),
        "plain": ours(2),
        "deformable": ours(2, offset=offset, mask=mask),
        "roi_align_adaptive": paddles(-1),
        "plain_adaptive": ours(0),
        "deformable_adaptive": ours(0, offset=offset, mask=mask),
    }


def peak_in_child(name: str) -> float:
    """Peak memory in MiB that one of `pool_rounds` takes above its inputs, in a process of its own."""
    command = [sys.executable, "-m", "ppdet_lite.benchmarks.operators", name]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def peak_above_inputs(name: str) -> float:
    """Peak memory in MiB of this process during one of `pool_rounds`, above what it had before."""
    one_round = pool_rounds()[name]
    ctypes.CDLL(None).malloc_trim(0)  # what making the inputs has left free must not serve the operator
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    one_round()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))  # KiB


def _leaf(array: np.ndarray) -> Tensor:
    return paddle.to_tensor(array, dtype="float32", stop_gradient=False)


def _time(rounds: dict[str, Round], repeats: int) -> dict[str, list[float]]:
    seconds = {name: [] for name in rounds}
    for _ in range(WARM_UP + repeats):
        for name, one_round in rounds.items():
            began = time.perf_counter()
            one_round()
            seconds[name].append(time.perf_counter() - began)
    return {name: values[WARM_UP:] for name, values in seconds.items()}


def _seconds(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {f"{name}_seconds": summary(values) for name, values in times.items()}


def _ratio(times: dict[str, list[float]], paddles: str, ours: str) -> float:
    return float(np.median(times[paddles]) / np.median(times[ours]))


if __name__ == "__main__":
    print(peak_above_inputs(sys.argv[1]))
