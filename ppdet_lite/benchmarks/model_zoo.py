"""The table of all recipes: size, cost, published AP and weights, and measured speed."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.benchmarks.model import bench_train, random_model
from ppdet_lite.benchmarks.timing import time_alternately
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.runtime import cpu_info, usable_cores
from ppdet_lite.modeling.components import RoIPool
from ppdet_lite.modeling.deform import DeformConv2D
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import named_weights
from ppdet_lite.peers.zoo import zoo_entries

COUNTED_SIZE = (800, 1344)  # (h, w) of the image for which operations are counted: 800 x 1333, padded
TIMED_SIZE = (320, 427)
CLASSES = [f"c{i}" for i in range(80)]
AFTER_ROIS = ("box_head", "predictor", "roi_pool", "earlier")  # parts that process RoIs, or feature maps for RoIs


class Row(NamedTuple):
    """One recipe in the table."""

    recipe: str  # relative to configs/
    parameters: float  # millions, in detection
    gmacs: float  # 1e9 multiply-adds
    ap: str
    weights: str  # projects with published weights
    step_seconds: float
    detect_seconds: float


def measure_rows(recipes: Sequence[Path], configs: Path, iterations: int) -> Iterator[Row]:
    """Yield the row of each recipe; each takes some seconds."""
    for path in recipes:
        config = load_config(path)
        parameters, gmacs = model_cost(config)
        yield Row(
            recipe=path.relative_to(configs).as_posix(),
            parameters=parameters,
            gmacs=gmacs,
            ap=published_ap(path),
            weights=", ".join(published_weights(path)),
            step_seconds=bench_train(config, TIMED_SIZE, 1, iterations)["step_seconds"]["median"],
            detect_seconds=detection_seconds(config, iterations),
        )


def model_cost(config: Config) -> tuple[float, float]:
    """Count millions of parameters, and 1e9 multiply-adds of convolutions and linear layers for one image.

    The image has COUNTED_SIZE. Operations per RoI are counted for `post_nms_test` RoIs, independently of the number
    that the random weights propose.
    """
    model = random_model(config, CLASSES, for_training=False)
    model.eval()
    rois: list[int] = []
    per_image, per_rois = [0], [0]

    def count(layer: nn.Layer, inputs: tuple[Tensor, ...], output: Tensor, after_rois: bool) -> None:
        is_per_roi = after_rois and output.shape[0] == rois[-1]
        (per_rois if is_per_roi else per_image).append(multiply_adds(layer, output))

    for name, layer in model.named_sublayers():
        if isinstance(layer, RoIPool):
            layer.register_forward_pre_hook(lambda layer, inputs: rois.append(inputs[1].boxes.shape[0]))
        if isinstance(layer, (nn.Conv2D, nn.Linear, DeformConv2D)):
            layer.register_forward_post_hook(partial(count, after_rois=name.startswith(AFTER_ROIS)))
    with paddle.no_grad():
        _detect(model, COUNTED_SIZE)
    roi_factor = config["model"]["rpn"]["post_nms_test"] / rois[-1]
    parameters = sum(weight.size for weight in named_weights(model).values())
    return parameters / 1e6, (sum(per_image) + sum(per_rois) * roi_factor) / 1e9


def multiply_adds(layer: nn.Layer, output: Tensor) -> int:
    """Return the multiply-adds of one call of a convolution or linear layer, without its bias."""
    shape = layer.weight.shape
    inputs = shape[0] if isinstance(layer, nn.Linear) else int(np.prod(shape[1:]))
    return output.size * inputs


def detection_seconds(config: Config, iterations: int) -> float:
    """Return the median time of detection in one image of TIMED_SIZE with the model in Paddle."""
    model = random_model(config, CLASSES, for_training=False)
    model.eval()
    stride = 32
    size = tuple(-(-side // stride) * stride for side in TIMED_SIZE)
    with paddle.no_grad():
        seconds = time_alternately({"detection": partial(_detect, model, size)}, iterations)
    return float(np.median(seconds["detection"]))


def published_ap(recipe: Path) -> str:
    """Return the published AP and its sources from the recipe's header, the text after "# COCO val AP: "."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    line = next((line for line in lines if line.startswith("# COCO val AP")), "")
    return line.partition(": ")[2] or "--"


def published_weights(recipe: Path) -> list[str]:
    """Return the projects whose published weights the zoo has for this recipe."""
    entries = [entry for entry in zoo_entries().values() if Path(entry.recipe or "").name == recipe.stem]
    unchanged = {entry.project.title for entry in entries if not entry.overrides}
    return [
        title if title in unchanged else f"{title} (with overrides)"
        for title in dict.fromkeys(entry.project.title for entry in entries)
    ]


def format_page(table: Sequence[Row]) -> str:
    """Format the rows as docs/model_zoo.md."""
    height, width = TIMED_SIZE
    machine = f"{usable_cores()} cores of {cpu_info().get('model name', 'an unknown processor')}"
    lines = [
        "# Model zoo",
        "",
        "For anyone who chooses a recipe: its size, cost, published AP, and the projects with weights for it.",
        "",
        "Written by `python tools/model_zoo.py`. Parameters are those used in detection, with 80 classes. GMACs are",
        "1e9 multiply-adds of convolutions and linear layers for one image of 800 x 1333 (padded to 1344) and the",
        f"config's number of RoIs. Times are medians for one image of {height} x {width} on {machine}, Paddle",
        f"{paddle.__version__}: a training step, and detection with the model in Paddle (random weights). AP is the",
        "number that the named project published for the same recipe, or a paper for a similar detector; no model was",
        "trained on COCO here. [zoo.md](zoo.md) has the published weights.",
        "",
        "| recipe | parameters, M | GMACs | published COCO val AP | weights in the zoo | step, s | detection, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        lines.append(
            f"| `{row.recipe}` | {row.parameters:.1f} | {row.gmacs:.0f} | {row.ap} | {row.weights or '--'} "
            f"| {row.step_seconds:.2f} | {row.detect_seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _detect(model: FasterRCNN, size: tuple[int, int]) -> None:
    paddle.seed(0)
    images = paddle.randn([1, 3, *size])
    sizes = paddle.to_tensor([size], dtype="float32")
    model(images, sizes, paddle.ones([1, 2]))
