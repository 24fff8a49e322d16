"""Weight initialization: the distributions, and the distribution of each layer of the detectors."""

import math
from collections.abc import Callable
from fnmatch import fnmatch

import numpy as np
import paddle
import pytest
from paddle import ParamAttr, nn

from ppdet_lite.modeling.box_head import ConvFCHead, Res5Head
from ppdet_lite.modeling.deform import Deformable, DeformConv2D
from ppdet_lite.modeling.initialization import kaiming_normal, normal, xavier_fill, zeros
from ppdet_lite.modeling.neck import Reduction
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.modeling.roi_pool import DeformPSRoIPool, DeformRoIPool
from tests.tiny import detector

KAIMING, XAVIER = "variance 2 / fan-out, normal", "variance 1 / fan-in, uniform"


def check(layer: nn.Layer, expected: str | float) -> None:
    """Check the standard deviation and shape of the distribution of a layer's weights, and that its bias is 0."""
    weight = layer.weight.numpy()
    taps = math.prod(weight.shape[2:])
    fan_in, fan_out = (weight.shape[1] * taps, weight.shape[0] * taps) if weight.ndim == 4 else weight.shape
    std = {KAIMING: math.sqrt(2 / fan_out), XAVIER: math.sqrt(1 / fan_in)}.get(expected, expected)
    tolerance = 3 / math.sqrt(weight.size) + 1e-3  # more than four times what chance does to a standard deviation
    assert weight.std() == pytest.approx(std, rel=tolerance)
    assert abs(weight.mean()) <= 5 * std / math.sqrt(weight.size)
    if expected == XAVIER:
        assert np.abs(weight).max() <= math.sqrt(3) * std * (1 + 1e-6)
    elif std:
        assert np.abs(weight).max() > 2.2 * std
    assert layer.bias is None or not layer.bias.numpy().any()


@pytest.mark.parametrize("make", [kaiming_normal, xavier_fill, lambda: normal(0.01), zeros])
def test_distributions(make: Callable[[], ParamAttr]) -> None:
    """For a convolution, a grouped convolution and a linear layer, with different fan-in and fan-out."""
    paddle.seed(0)
    expected = {kaiming_normal: KAIMING, xavier_fill: XAVIER, zeros: 0.0}.get(make, 0.01)
    layers = [nn.Conv2D(32, 64, 3, weight_attr=make()), nn.Conv2D(32, 64, 3, groups=4, weight_attr=make())]
    for layer in layers if make is kaiming_normal else [*layers, nn.Linear(300, 100, weight_attr=make())]:
        check(layer, expected)


@pytest.mark.parametrize("make", [kaiming_normal, xavier_fill, lambda: normal(0.01)])
def test_layers_differ_and_depend_on_the_seed(make: Callable[[], ParamAttr]) -> None:
    def draw(seed: int) -> list[np.ndarray]:
        paddle.seed(seed)
        attribute = make()
        return [nn.Conv2D(8, 8, 3, weight_attr=attribute).weight.numpy() for _ in range(2)]

    first, second = draw(0)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(draw(0), [first, second])
    assert not np.array_equal(draw(1)[0], first)


def test_learning_rates() -> None:
    conv = nn.Conv2D(3, 4, 1, weight_attr=normal(0.01, lr_scale=0.1), bias_attr=zeros(0.5))
    assert conv.weight.optimize_attr["learning_rate"] == 0.1
    assert conv.bias.optimize_attr["learning_rate"] == 0.5


PARTS = {  # what makes it, and how layers of each name begin: the first pattern that fits counts
    "detector": (
        lambda: detector(pool="modulated", mimic={}),
        {
            "backbone.*": KAIMING,
            "neck.*": XAVIER,
            "rpn.*": 0.01,
            "roi_pool.offset.4": 0.0,
            "roi_pool.offset.*": 0.01,
            "box_head.*": XAVIER,
            "predictor.classify": 0.01,
            "predictor.regress": 0.001,
            "mimic.classify": 0.01,
        },
    ),
    "mmcv's branches": (
        lambda: DeformRoIPool([16], 16, modulated=True, branch="mmcv", hidden=32, output_size=3, levels=1),
        {"offset.4": 0.0, "mask.2": 0.0, "*": 0.01},
    ),
    "deformable backbone": (
        lambda: ResNet(18, variant="d", deformable=Deformable(stages=(5,))),
        {"*.offset": 0.0, "*": KAIMING},
    ),
    "deformable convolution": (
        lambda: nn.Sequential(DeformConv2D(8, 32, 3, 1, 1, Deformable())),
        {"0": KAIMING, "*": 0.0},
    ),
    "4conv1fc": (
        lambda: ConvFCHead(16, 3, convs=2, conv_channels=32, width=64),
        {"convs.*": KAIMING, "fc": XAVIER},
    ),
    "C4's head": (lambda: Res5Head(256, 7, depth=18, norm="gn"), {"*": KAIMING}),
    "DC5's neck": (lambda: Reduction([64, 128], [16, 16], 32), {"*": 0.01}),
    "position-sensitive pooling": (lambda: DeformPSRoIPool([16], 32, 8, group_size=3), {"maps": 0.01, "fields": 0.0}),
}


@pytest.mark.parametrize("part", PARTS)
def test_initialization_of_every_layer(part: str) -> None:
    """No layer has Paddle's default."""
    paddle.seed(0)
    make, patterns = PARTS[part]
    weighted = (nn.Conv2D, nn.Linear, DeformConv2D)
    layers = {name: layer for name, layer in make().named_sublayers() if isinstance(layer, weighted)}
    used = set()
    for name, layer in layers.items():
        pattern = next(pattern for pattern in patterns if fnmatch(name, pattern))
        check(layer, patterns[pattern])
        used.add(pattern)
    assert used == set(patterns)
