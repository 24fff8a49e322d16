"""How far each recipe's ONNX file is from the model it was made of: python -m tests.oracles.onnx_agreement [FILTER]

Every distinct model there is, at a short side of 160 and with narrow heads, its weights drawn such that it finds much
and its samples move by about a cell: four drawn images of different sizes and one in which nothing can be found, each
alone and in pairs, as `export` compares them before it keeps a file. Takes about half an hour on two cores.
"""

import ppdet_lite  # noqa: F401  # isort: skip - sets threads and MKL, as for the tools, before paddle is imported

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import paddle
from paddle import nn

from ppdet_lite.assembly.batch_tensors import detection_arguments
from ppdet_lite.assembly.setup import TrainedModel, build_model
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import RunFailed
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.loading.transforms import collate, image_sample
from ppdet_lite.data.synthetic.shapes import scene
from ppdet_lite.deployment.export import export
from ppdet_lite.evaluation.offsets import deformable_parts
from ppdet_lite.modeling.deform import DeformConv2D
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from tests.test_configs import RECIPES, name_of, small

NAMES = [f"class {k}" for k in range(8)]
SIZES = [(240, 320), (320, 200), (256, 256), (150, 400)]  # (h, w)
SMALLER = [
    "model.postprocess={score_threshold: 0.2, max_detections: 30}",
    "model.mimic=null",
    "data.preprocess.short_side=160",
    "data.preprocess.long_side=266",
]


def main() -> None:
    """Print a line for each model: detections compared, the largest gaps, and the first recipe that has it."""
    chosen = [path for path in RECIPES if sys.argv[1:2] == [] or sys.argv[1] in name_of(path)]
    worst = np.zeros(2)
    with tempfile.TemporaryDirectory() as folder:
        pictures = list(draw(Path(folder)))
        for path, config in distinct(chosen):
            model = make_model(config, pictures)
            trained = TrainedModel(model, NAMES, list(range(8)), build(config["data"]["preprocess"]), name_of(path))
            try:
                found = export(trained, Path(folder) / "model", pictures, "onnx")
            except RunFailed as error:
                print(f"FAILED {name_of(path)}: {error}", flush=True)
                continue
            print(f"{found.detections:4d}  {found.box_gap:.1e} px  {found.score_gap:.1e}  {name_of(path)}", flush=True)
            worst = np.maximum(worst, [found.box_gap, found.score_gap])
    print(f"largest: {worst[0]:.1e} px, {worst[1]:.1e}")


def distinct(paths: list[Path]) -> Iterator[tuple[Path, Config]]:
    """The recipes whose model, as small as it is here, no earlier one has."""
    seen = set()
    for path in paths:
        config = small(path, SMALLER)
        if (key := config["model"].dump()) not in seen:
            seen.add(key)
            yield path, config


def draw(folder: Path) -> Iterator[Path]:
    """Write the images."""
    for i, (height, width) in enumerate(SIZES):
        picture = cv2.resize(scene(np.random.default_rng(i), 400)[0], (width, height))
        cv2.imwrite(str(folder / f"{i}.png"), picture[..., ::-1])
        yield folder / f"{i}.png"


def make_model(config: Config, pictures: list[Path]) -> FasterRCNN:
    """A model whose RoIs differ in score and class, and whose offsets are not zero."""
    paddle.seed(0)
    model = build_model(config, NAMES)
    for name, parameter in model.named_parameters():  # without pretrained weights blocks would add up
        if name.endswith(("conv2.norm.weight", "conv3.norm.weight")):
            parameter.set_value(parameter * 0.3)
    nn.initializer.Normal(0, 1.0)(model.predictor.classify.weight)
    nn.initializer.Normal(0, 0.3)(model.predictor.regress.weight)
    for part in deformable_parts(model).values():
        for layer in part.sublayers():
            if isinstance(layer, nn.Conv2D | nn.Linear):
                nn.initializer.Normal(0, 0.02 if isinstance(part, DeformConv2D) else 0.1)(layer.weight)
    model.eval()
    preprocess = build(config["data"]["preprocess"])
    batch = collate([image_sample(load_image(str(path)), preprocess, 0) for path in pictures], preprocess)
    background = np.float32([0] * len(NAMES) + [-10])  # rare
    spread(model, model.predictor.classify, batch, 2.5, background)
    spread(model, model.predictor.regress, batch, 0.5, np.float32(0))
    return model


def spread(model: FasterRCNN, layer: nn.Linear, batch: dict, deviation: float, mean: np.ndarray) -> None:
    """Scale a last layer such that over the RoIs of a batch its outputs have this deviation and mean."""
    seen = []
    hook = layer.register_forward_post_hook(lambda layer, arguments, output: seen.append(output.numpy()))
    with paddle.no_grad():
        model(*detection_arguments(batch))
    hook.remove()
    factor = deviation / seen[0].std(axis=0).mean()
    layer.weight.set_value(layer.weight * float(factor))
    layer.bias.set_value((mean - factor * (seen[0].mean(axis=0) - layer.bias.numpy())).astype(np.float32))


if __name__ == "__main__":
    main()
