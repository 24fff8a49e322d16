"""A detector of random weights that finds many things, and whose deformable parts look aside."""

import numpy as np
from paddle import nn

from ppdet_lite.assembly.setup import TrainedModel, build_model
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.evaluation.offsets import deformable_parts
from ppdet_lite.modeling.deform import DeformConv2D

NAMES = ["cat", "dog"]


def random_detector(config: Config) -> TrainedModel:
    """Random weights everywhere, such that much is found and samples are moved by about a cell."""
    model = build_model(config, NAMES)
    classify = model.predictor.classify
    spread = 2.4 / np.sqrt(classify.weight.shape[0])
    nn.initializer.Normal(0, spread)(classify.weight)
    classify.bias.set_value(np.float32([0, 0, -10]))  # background is rare
    nn.initializer.Normal(0, spread)(model.predictor.regress.weight)
    for part in deformable_parts(model).values():
        is_conv = isinstance(part, DeformConv2D)
        for layer in part.sublayers():
            if isinstance(layer, nn.Conv2D | nn.Linear):
                nn.initializer.Normal(0, 0.02 if is_conv else 0.1)(layer.weight)
    for name, value in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):  # which ends a bottleneck: sixteen of them would let signals explode
            value.set_value(value * 0.15)
    model.eval()
    return TrainedModel(model, NAMES, [1, 2], build(config["data"]["preprocess"]), "nowhere")
