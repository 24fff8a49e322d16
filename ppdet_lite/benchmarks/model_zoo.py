"""The table of all recipes: size, cost, published AP, what they convert from, and speed on this machine."""

import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.benchmarks.model import bench_train
from ppdet_lite.benchmarks.timing import WARM_UP
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.runtime import cpu_info, usable_cores
from ppdet_lite.modeling.deform import DeformConv2D
from ppdet_lite.modeling.faster_rcnn import FasterRCNN

COUNTED_SIZE = (800, 1344)  # of the image whose work is counted: 800 x 1333, padded
TIMED_SIZE = (320, 427)
CLASSES = [f"c{i}" for i in range(80)]
AFTER_ROIS = ("box_head", "predictor", "roi_pool")  # parts that work on each RoI, or on whole maps for them
CONVERTS = {  # recipe's name -> whose checkpoints become it, beside PaddleDetection's where its AP is told
    "faster_rcnn_r50_fpn_1x_coco": ("torchvision", "mmdetection", "detectron2"),
    "faster_rcnn_r101_fpn_1x_coco": ("PaddleDetection", "mmdetection", "detectron2"),
    "faster_rcnn_r50_1x_coco": ("detectron2",),
    "faster_rcnn_r101_1x_coco": ("detectron2",),
    "faster_rcnn_r50_dc5_1x_coco": ("detectron2",),
    "faster_rcnn_dcn_r50_fpn_1x_coco": ("mmdetection",),
    "faster_rcnn_dconv_c3-c5_r50_fpn_1x_coco": ("mmdetection",),
    "faster_rcnn_mdconv_c3-c5_group4_r50_fpn_1x_coco": ("mmdetection",),
    "faster_rcnn_r50_fpn_dpool_1x_coco": ("mmdetection",),
    "faster_rcnn_r50_fpn_mdpool_1x_coco": ("mmdetection",),
}


class Row(NamedTuple):
    """One recipe."""

    recipe: str  # below configs/
    parameters: float  # millions, those of detection
    gmacs: float  # 1e9 multiply-adds
    ap: str
    converts: str
    step_seconds: float
    detect_seconds: float


def rows(recipes: Sequence[Path], configs: Path, iterations: int) -> Iterator[Row]:
    """The rows of recipes, as they come; each takes some seconds."""
    for path in recipes:
        config = load_config(path)
        parameters, gmacs = size_of(config)
        yield Row(
            path.relative_to(configs).as_posix(),
            parameters,
            gmacs,
            published_ap(path),
            ", ".join(converts_from(path)),
            bench_train(config, TIMED_SIZE, 1, iterations)["step_seconds"]["median"],
            detection_seconds(config, iterations),
        )


def size_of(config: Config) -> tuple[float, float]:
    """Millions of parameters, and 1e9 multiply-adds of convolutions and linear layers, in one image of COUNTED_SIZE.

    What works on RoIs is counted for as many as `post_nms_test`, whatever random weights propose.
    """
    model = build_model(config, CLASSES, for_training=False)
    model.eval()
    rois: list[int] = []
    model.roi_pool.register_forward_pre_hook(lambda layer, inputs: rois.append(inputs[1].boxes.shape[0]))
    whole, per_rois = [0], [0]

    def count(layer: nn.Layer, inputs: tuple[Tensor, ...], output: Tensor, after_rois: bool) -> None:
        each_roi = after_rois and output.shape[0] == rois[-1]
        (per_rois if each_roi else whole).append(multiply_adds(layer, output))

    for name, layer in model.named_sublayers():
        if isinstance(layer, (nn.Conv2D, nn.Linear, DeformConv2D)):
            layer.register_forward_post_hook(partial(count, after_rois=name.startswith(AFTER_ROIS)))
    with paddle.no_grad():
        _detect(model, COUNTED_SIZE)
    proposed = config["model"]["rpn"]["post_nms_test"] / rois[-1]
    statistics = ("._mean", "._variance")
    parameters = sum(p.size for name, p in model.named_parameters() if not name.endswith(statistics))
    return parameters / 1e6, (sum(whole) + sum(per_rois) * proposed) / 1e9


def multiply_adds(layer: nn.Layer, output: Tensor) -> int:
    """Those of one call of a convolution or a linear layer, without its bias."""
    shape = layer.weight.shape
    inputs = shape[0] if isinstance(layer, nn.Linear) else int(np.prod(shape[1:]))
    return output.size * inputs


def detection_seconds(config: Config, iterations: int) -> float:
    """The median time of detecting in one image of TIMED_SIZE, by the model as it is trained."""
    model = build_model(config, CLASSES, for_training=False)
    model.eval()
    stride = 32
    size = tuple(-(-side // stride) * stride for side in TIMED_SIZE)
    seconds = []
    with paddle.no_grad():
        for _ in range(WARM_UP + iterations):
            began = time.perf_counter()
            _detect(model, size)
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[WARM_UP:]))


def published_ap(recipe: Path) -> str:
    """What the recipe's header says of AP, and whose it is: the rest of its line "# COCO val AP...: "."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    line = next((line for line in lines if line.startswith("# COCO val AP")), "")
    return line.partition(": ")[2] or "--"


def converts_from(recipe: Path) -> list[str]:
    """Whose checkpoints become this recipe's."""
    own = ["PaddleDetection"] if "PaddleDetection" in published_ap(recipe) else []
    return [*own, *CONVERTS.get(recipe.stem, ())]


def page(table: Sequence[Row]) -> str:
    """The rows as docs/model_zoo.md."""
    height, width = TIMED_SIZE
    machine = f"{usable_cores()} cores of {cpu_info().get('model name', 'an unknown processor')}"
    lines = [
        "# Model zoo",
        "",
        "Written by `python tools/model_zoo.py`. Parameters are those of detection, with 80 classes. GMACs are 1e9",
        "multiply-adds of convolutions and linear layers in one image of 800 x 1333 (padded to 1344), as many RoIs",
        f"as the config proposes. Seconds are medians for one image of {height} x {width} on {machine}, Paddle",
        f"{paddle.__version__}: a training step, and detection by the model as trained. AP is what others publish",
        "for the recipe, and whose it is; nothing here was trained on COCO.",
        "",
        "| recipe | parameters, M | GMACs | COCO val AP, and whose | converts from | step, s | detection, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table:
        lines.append(
            f"| `{row.recipe}` | {row.parameters:.1f} | {row.gmacs:.0f} | {row.ap} | {row.converts or '--'} "
            f"| {row.step_seconds:.2f} | {row.detect_seconds:.2f} |"
        )
    return "\n".join(lines) + "\n"


def _detect(model: FasterRCNN, size: tuple[int, int]) -> None:
    paddle.seed(0)
    images = paddle.randn([1, 3, *size])
    sizes = paddle.to_tensor([size], dtype="float32")
    model(images, sizes, paddle.ones([1, 2]))
