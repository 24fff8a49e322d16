"""Benchmarks of the deformable operators, compared with Paddle's operators in the same run: time and peak memory.

`python -m ppdet_lite.benchmarks.operators NAME` runs one RoI operator once and prints its peak memory. `run` starts
this in a separate process for each RoI operator, and measures times in its own process.
"""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor
from paddle.vision.ops import roi_align

from ppdet_lite.benchmarks.timing import summary, time_alternately
from ppdet_lite.ops import deform_conv2d, deform_roi_pool

Report = dict[str, dict[str, float | dict[str, float]]]
Case = Callable[[], object]


def run(repeats: int) -> Report:
    """Time forward and backward passes of the operators, alternating between implementations, and measure memory.

    Returns, per operator, `<name>_seconds`: median, min and max; ratios of the medians, Paddle's operator / ours; and
    for RoI pooling the peak memory in MiB in addition to the inputs, only on Linux with the GNU C library.
    """
    conv, pool = time_alternately(conv_cases(), repeats), time_alternately(pool_cases(), repeats)
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
        report["deform_roi_pool"] |= {f"{name}_peak_mb": peak_in_child(name) for name in pool_cases()}
    return report


def conv_cases() -> dict[str, Case]:
    """Return passes of deformable 3x3 convolutions, v1 and v2, 128 -> 128 channels on 1x64x64; native is Paddle's."""
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

    def version(implementation: str, *mask: Tensor) -> Case:
        def forward_and_backward() -> None:
            out = deform_conv2d(x, offset, weight, *mask, padding=1, implementation=implementation)
            paddle.grad(out, [x, offset, weight, *mask], upstream)

        return forward_and_backward

    return {
        "native_v1": version("native"),
        "gather_v1": version("gather"),
        "native_v2": version("native", mask),
        "gather_v2": version("gather", mask),
    }


def pool_cases() -> dict[str, Case]:
    """Return passes of pooling 512 RoIs of 1x256x50x84 into 7x7 bins; plain and deformable are our operator.

    A bin has 2x2 samples or, in the adaptive cases, a number that depends on the size of the RoI.
    """
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(60), np.log(500), (512, 2)))
    corner = rng.random((512, 2)) * ([1333, 800] - size)
    boxes = paddle.to_tensor(np.concatenate([corner, corner + size], axis=1), dtype="float32")
    counts = paddle.to_tensor([512], dtype="int32")
    x, upstream = _leaf(rng.normal(size=(1, 256, 50, 84))), _leaf(rng.normal(size=(512, 256, 7, 7)))
    offset, mask = _leaf(rng.normal(size=(512, 2, 7, 7))), _leaf(rng.random((512, 1, 7, 7)))

    def our_operator(samples: int, **branch: Tensor) -> Case:
        def forward_and_backward() -> None:
            out = deform_roi_pool(x, boxes, counts, 7, 1 / 16, samples, **branch)
            paddle.grad(out, [x, *branch.values()], upstream)

        return forward_and_backward

    def paddle_operator(samples: int) -> Case:
        return lambda: paddle.grad(roi_align(x, boxes, counts, 7, 1 / 16, samples), [x], upstream)

    return {
        "roi_align": paddle_operator(2),
        "plain": our_operator(2),
        "deformable": our_operator(2, offset=offset, mask=mask),
        "roi_align_adaptive": paddle_operator(-1),
        "plain_adaptive": our_operator(0),
        "deformable_adaptive": our_operator(0, offset=offset, mask=mask),
    }


def peak_in_child(name: str) -> float:
    """Return the result of `peak_above_inputs` in a separate process."""
    command = [sys.executable, "-m", "ppdet_lite.benchmarks.operators", name]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def peak_above_inputs(name: str) -> float:
    """Return the peak memory in MiB of one of `pool_cases` in this process, minus the memory before it."""
    run_case = pool_cases()[name]
    ctypes.CDLL(None).malloc_trim(0)  # the operator must not reuse memory freed during the creation of inputs
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    run_case()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))  # KiB


def _leaf(array: np.ndarray) -> Tensor:
    return paddle.to_tensor(array, dtype="float32", stop_gradient=False)


def _seconds(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {f"{name}_seconds": summary(values) for name, values in times.items()}


def _ratio(times: dict[str, list[float]], numerator: str, denominator: str) -> float:
    return float(np.median(times[numerator]) / np.median(times[denominator]))


if __name__ == "__main__":
    print(peak_above_inputs(sys.argv[1]))
