"""Our side of `speed.py`: python -m tests.oracles.speed_ours CASE WAY"""

import sys
import time
from collections.abc import Callable

import ppdet_lite  # sets threads and malloc before paddle is imported

assert ppdet_lite.__version__

import numpy as np  # noqa: E402
import paddle  # noqa: E402

from ppdet_lite.assembly.setup import build_model, load_config  # noqa: E402
from ppdet_lite.benchmarks.model import export_predictors  # noqa: E402
from ppdet_lite.config.registry import build  # noqa: E402
from ppdet_lite.data.loading.transforms import Sample, collate  # noqa: E402
from ppdet_lite.deployment.detect import TrainedNetwork  # noqa: E402
from ppdet_lite.training.step import train_step  # noqa: E402
from tests.oracles.speed_cases import CASES, CLASSES, Case, Picture, pictures, serve  # noqa: E402

Network = Callable[..., object]  # arrays: images, image sizes, scales
SIDE = 1536  # of the matrices whose product tells the machine's rate


def sample(picture: Picture) -> Sample:
    """As the loader hands it over."""
    return {
        "image": picture.image,
        "image_id": 0,
        "image_size": np.array(picture.image.shape[:2], np.float32),
        "original_size": np.array(picture.image.shape[:2], np.float32),
        "scale": np.ones(2, np.float32),
        "gt_boxes": picture.boxes,
        "gt_classes": picture.classes,
        "gt_is_crowd": np.zeros(len(picture.boxes), bool),
    }


def step_of(case: Case, way: str) -> Callable[[], object]:
    """A training step or a detection; the learning rate is 0, so that nothing can diverge."""
    norms = [f"model.backbone.norm={case.norm}"] + ["model.neck.norm=gn"] * (case.norm == "gn")
    config = load_config(case.config, norms)
    preprocess, samples = build(config["data"]["preprocess"]), [sample(picture) for picture in pictures(case)]
    model = build_model(config, [f"c{i}" for i in range(CLASSES)], for_training=case.training)
    if case.training:
        model.train()
        recipe = build(config["optimizer"])
        optimizer = recipe.build(model)
        amp = "bfloat16" if case.bfloat16 else None
        return lambda: train_step(model, optimizer, collate(samples, preprocess), recipe.clip_norm, amp=amp)
    model.eval()
    if way == "as trained":
        network = TrainedNetwork(model, "bfloat16" if case.bfloat16 else "float32")
    else:
        network = export_predictors(model, preprocess, onnx=way == "onnx")[way]

    def detect() -> object:
        batch = collate(samples, preprocess)
        return network(*(batch[key] for key in ("images", "image_sizes", "scales")))

    return detect


def rate() -> float:
    """GFLOP/s of a large matrix product: the best of five."""
    matrix, seconds = paddle.ones([SIDE, SIDE]), []
    for _ in range(5):
        began = time.perf_counter()
        paddle.matmul(matrix, matrix)
        seconds.append(time.perf_counter() - began)
    return 2 * SIDE**3 / min(seconds) / 1e9


if __name__ == "__main__":
    serve(step_of(CASES[sys.argv[1]], sys.argv[2]), rate)
