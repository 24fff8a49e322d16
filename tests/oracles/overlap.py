"""When the gradients of two processes are averaged: `python -m tests.oracles.overlap [--size 128x128] [--steps 7]`

Trains R50-FPN on a random image per process, by gloo. Prints when each reduction of the last step started and ended,
in milliseconds relative to the end of the backward pass, and the median time of a step without the first two.
"""

import argparse
import os
import statistics
import sys
import time
from typing import Any

import ppdet_lite  # sets threads and malloc before paddle is imported

assert ppdet_lite.__version__

import numpy as np  # noqa: E402
import paddle  # noqa: E402
from paddle import distributed as dist  # noqa: E402

from ppdet_lite.assembly import ranks  # noqa: E402
from ppdet_lite.assembly.setup import build_model, load_config  # noqa: E402
from ppdet_lite.config.registry import build  # noqa: E402
from ppdet_lite.training.step import train_step  # noqa: E402
from tests.ranks import ROOT, start  # noqa: E402

CONFIG = ROOT / "configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.yml"
reductions: list[tuple[float, float, int]] = []  # start, end, elements
backward_passes: list[tuple[float, float]] = []  # start, end


def record() -> None:
    """Record the times of reductions and of backward passes."""
    all_reduce, backward = dist.all_reduce, paddle.Tensor.backward

    def reduce(tensor: paddle.Tensor, *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        result = all_reduce(tensor, *args, **options)
        reductions.append((begin, time.perf_counter(), tensor.size))
        return result

    def timed_backward(*args: Any, **options: Any) -> None:
        begin = time.perf_counter()
        backward(*args, **options)
        backward_passes.append((begin, time.perf_counter()))

    dist.all_reduce, paddle.Tensor.backward = reduce, timed_backward


def image(height: int, width: int) -> dict[str, Any]:
    """A batch of one image of noise with four objects; each rank has another."""
    rng = np.random.default_rng(ranks.rank())
    corners = rng.uniform(0, 0.5, (4, 2)) * (width, height)
    boxes = np.hstack([corners, corners + np.array([width, height]) / 3]).astype(np.float32)
    return {
        "images": rng.standard_normal((1, 3, height, width)).astype(np.float32),
        "image_sizes": np.float32([[height, width]]),
        "scales": np.ones((1, 2), np.float32),
        "image_ids": np.array([ranks.rank()]),
        "targets": [{"boxes": boxes, "classes": rng.integers(0, 80, 4), "is_crowd": np.zeros(4, bool)}],
    }


def train(size: str, steps: int) -> None:
    ranks.start()
    record()
    config = load_config(CONFIG, ["pretrain_weights=null"])
    model = build_model(config, [f"c{i}" for i in range(80)])
    model.train()
    optimizer = build(config["optimizer"]).build(model)  # its learning rate is 0
    batch, seconds = image(*map(int, size.split("x"))), []
    for _ in range(steps):
        reductions.clear()
        begin = time.perf_counter()
        train_step(model, optimizer, batch)
        seconds.append(time.perf_counter() - begin)
    begin, end = backward_passes[-1]
    print(f"rank {ranks.rank()}: backward pass {(begin - end) * 1000:.0f} to 0 ms")
    for number, (started, ended, elements) in enumerate(reductions, start=1):
        times = f"{(started - end) * 1000:6.0f} to {(ended - end) * 1000:6.0f} ms"
        print(f"  reduction {number}: {elements * 4 / 2**20:5.1f} MiB {times}")
    print(f"  step: median {statistics.median(seconds[2:]):.3f} s, shortest {min(seconds[2:]):.3f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="128x128", help="height x width")
    parser.add_argument("--steps", type=int, default=7)
    args = parser.parse_args()
    if "PADDLE_TRAINER_ID" in os.environ:
        train(args.size, args.steps)
        return
    command = ["-m", "tests.oracles.overlap", "--size", args.size, "--steps", str(args.steps)]
    for process in start(2, *command):
        output, errors = process.communicate()
        print(output if process.returncode == 0 else errors, end="")
        if process.returncode:
            sys.exit(1)


if __name__ == "__main__":
    main()
