"""Deformable RoI pooling as a component: initialization, branches, and training."""

import numpy as np
import paddle
import pytest
from paddle import Tensor, nn

from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.roi_pool import DeformPSRoIPool, DeformRoIPool, RoIAlign
from ppdet_lite.ops import deform_roi_pool
from ppdet_lite.optimization.optimizer import SGD
from ppdet_lite.structures import Rois
from tests import tiny

STRIDES, CHANNELS, SIZE = [4, 8, 16, 32, 64], 8, 3
BINS = SIZE**2
KINDS = pytest.mark.parametrize(("modulated", "branch"), [(m, b) for m in (False, True) for b in ("paper", "mmcv")])


def pool(modulated: bool = False, branch: str = "paper", **settings: float | int) -> DeformRoIPool:
    paddle.seed(0)
    return DeformRoIPool(STRIDES, CHANNELS, modulated, branch, hidden=5, output_size=SIZE, **settings)


@pytest.fixture
def features() -> list[Tensor]:
    """Features of two images of 320 x 320."""
    rng = np.random.default_rng(0)
    return [tiny.float32(rng.standard_normal((2, CHANNELS, 320 // s, 320 // s))) for s in STRIDES]


@pytest.fixture
def rois() -> Rois:
    """RoIs of two images; the last of the first is on level 1, the next on level 2, the others on level 0."""
    return tiny.rois([[60, 50, 110, 92], [70, 40, 200, 160]], [[40, 60, 280, 290], [90, 80, 97, 110]])


def last_layers(layer: DeformRoIPool) -> list[nn.Linear]:
    return [branch[-1] for branch in (layer.offset, layer.mask) if branch is not None]


def assert_close(found: Tensor, expected: Tensor) -> None:
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-5)


@KINDS
@pytest.mark.parametrize("training", [True, False])
def test_initially_equals_roi_align(
    modulated: bool, branch: str, training: bool, features: list[Tensor], rois: Rois
) -> None:
    """If modulated, it is multiplied by 0.5, the sigmoid of 0."""
    layer, plain = pool(modulated, branch), RoIAlign(STRIDES, output_size=SIZE)
    layer.training = training
    plain.eval()  # then it is Paddle's own operator
    assert_close(layer(features, rois), plain(features, rois) * (0.5 if modulated else 1.0))


def test_the_number_of_samples_is_that_of_the_settings(features: list[Tensor], rois: Rois) -> None:
    plain = RoIAlign(STRIDES, output_size=SIZE, sampling_ratio=2)
    plain.eval()
    found = pool(sampling_ratio=2)(features, rois)
    assert_close(found, plain(features, rois))
    assert (found - pool()(features, rois)).abs().max() > 0.01  # adapted to the RoIs


@KINDS
def test_an_offset_is_a_share_of_the_roi(modulated: bool, branch: str, features: list[Tensor], rois: Rois) -> None:
    """With the same offset in all bins the RoI moves by gamma * (width * dx, height * dy); x comes first."""
    layer, plain = pool(modulated, branch, gamma=0.2), RoIAlign(STRIDES, output_size=SIZE)
    plain.eval()
    bias = last_layers(layer)[0].bias.numpy()
    bias[:BINS], bias[BINS : 2 * BINS] = 0.5, -1.0
    last_layers(layer)[0].bias.set_value(bias)
    boxes = rois.boxes.numpy()
    extent = boxes[:, 2:] - boxes[:, :2]
    moved = boxes + np.tile(extent * np.float32([0.2 * 0.5, -0.2]), 2)
    expected = plain(features, Rois(tiny.float32(moved), rois.counts))
    assert_close(layer(features, rois), expected * (0.5 if modulated else 1.0))


@pytest.mark.parametrize("branch", ["paper", "mmcv"])
def test_the_mask_is_a_sigmoid_per_bin(branch: str, features: list[Tensor], rois: Rois) -> None:
    layer, logits = pool(True, branch), np.linspace(-2, 2, BINS, dtype=np.float32)
    before = layer(features, rois)
    bias = last_layers(layer)[-1].bias.numpy()
    bias[-BINS:] = logits
    last_layers(layer)[-1].bias.set_value(bias)
    mask = 1 / (1 + np.exp(-logits)).reshape(SIZE, SIZE)
    assert_close(layer(features, rois), before * paddle.to_tensor(2 * mask))


@pytest.mark.parametrize(
    ("modulated", "branch", "offset", "mask"),
    [
        (False, "paper", [[72, 18]], None),
        (True, "paper", [[72, 5], [5, 5], [5, 27]], None),
        (False, "mmcv", [[72, 5], [5, 5], [5, 18]], None),
        (True, "mmcv", [[72, 5], [5, 5], [5, 18]], [[72, 5], [5, 9]]),
    ],
)
def test_layers_of_each_branch(
    modulated: bool, branch: str, offset: list[list[int]], mask: list[list[int]] | None
) -> None:
    """Inputs are 8 channels of 3 x 3 bins. v1's paper has one layer; v2's a shared trunk; mmcv a mask branch apart."""
    layer = pool(modulated, branch)

    def weights(part: nn.Sequential) -> list[list[int]]:
        return [linear.weight.shape for linear in part.sublayers() if isinstance(linear, nn.Linear)]

    assert weights(layer.offset) == offset
    assert (layer.mask if mask is None else weights(layer.mask)) == mask
    for last in last_layers(layer):
        assert not last.weight.numpy().any() and not last.bias.numpy().any()


def test_initialization_of_hidden_layers() -> None:
    layer = DeformRoIPool(STRIDES, 16, modulated=True, hidden=400, output_size=7)
    for linear in (layer.offset[0], layer.offset[2]):
        assert linear.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert abs(linear.weight.mean().item()) < 1e-4 and not linear.bias.numpy().any()


@KINDS
def test_gradients_reach_every_branch(modulated: bool, branch: str, features: list[Tensor], rois: Rois) -> None:
    """In the first step only the last layers, which are 0; later all."""
    layer = pool(modulated, branch)
    weight = tiny.float32(np.random.default_rng(1).standard_normal((4, CHANNELS, SIZE, SIZE)))
    for feature in features:
        feature.stop_gradient = False

    def moved() -> dict[str, bool]:
        (layer(features, rois) * weight).sum().backward()
        return {name: bool((p.grad.numpy() != 0).any()) for name, p in layer.named_parameters()}

    last = {id(p) for linear in last_layers(layer) for p in linear.parameters()}
    assert moved() == {name: id(p) in last for name, p in layer.named_parameters()}
    assert [(feature.grad.numpy() != 0).any() for feature in features[:4]] == [True, True, True, False]
    optimizer = SGD().build(layer)
    optimizer.set_lr(0.1)
    optimizer.step()
    optimizer.clear_grad()
    for linear in (part for part in layer.sublayers() if isinstance(part, nn.Linear) and part.weight.shape[1] == 5):
        linear.bias.set_value(paddle.full_like(linear.bias, 1.0))  # so that no ReLU is dead
    assert all(moved().values())


@pytest.mark.parametrize("scale", [0.01, 1.0])
@KINDS
def test_the_branch_learns_at_its_own_rate(
    modulated: bool, branch: str, scale: float, features: list[Tensor], rois: Rois
) -> None:
    layer = pool(modulated, branch, offset_lr=scale)
    assert {p.optimize_attr["learning_rate"] for p in layer.parameters()} == {scale}
    (layer(features, rois) ** 2).sum().backward()
    bias = last_layers(layer)[0].bias
    before, gradient = bias.numpy(), bias.grad.numpy()
    optimizer = SGD(weight_decay=0.0).build(layer)
    optimizer.set_lr(0.2)
    optimizer.step()
    assert np.abs(gradient).max() > 0.1
    np.testing.assert_allclose(bias.numpy() - before, -0.2 * scale * gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["align in training", "align", "plain", "modulated"])
def test_unused_levels_can_be_omitted(kind: str, features: list[Tensor], rois: Rois) -> None:
    layer = RoIAlign(STRIDES, output_size=SIZE) if "align" in kind else pool(kind == "modulated")
    layer.training = kind != "align"
    if "align" not in kind:
        last = last_layers(layer)[0]
        last.weight.set_value(0.1 * paddle.randn(last.weight.shape))
    assert layer.level(rois.boxes).tolist() == [0, 1, 2, 0]
    coarse = tiny.rois([rois.boxes[1].tolist()], [rois.boxes[2].tolist()])
    assert_close(layer(features[1:], coarse, finest=1), layer(features, coarse))


@KINDS
def test_no_rois(modulated: bool, branch: str, features: list[Tensor]) -> None:
    layer = pool(modulated, branch)
    assert layer(features, tiny.rois([], [])).shape == [0, CHANNELS, SIZE, SIZE]


def ps_pool(**settings: float | int) -> DeformPSRoIPool:
    paddle.seed(0)
    return DeformPSRoIPool([8], 3, out_channels=2, group_size=2, output_size=2, sample_per_part=2, **settings)


def test_each_bin_is_pooled_from_the_map_of_its_part() -> None:
    """Constant maps 1..8: bin (i, j) of channel c has the value of map (2c + i) * 2 + j."""
    layer, roi = ps_pool(), tiny.rois([[8, 8, 39, 39]])
    layer.maps.weight.set_value(paddle.zeros_like(layer.maps.weight))
    layer.maps.bias.set_value(tiny.float32(np.arange(1, 9)))
    pooled = layer([paddle.zeros([1, 3, 6, 6])], roi)
    assert pooled.tolist() == [[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]]
    assert layer.out_channels == 2 and layer.level(roi.boxes).tolist() == [0]


def test_fields_give_the_offsets_of_the_bins() -> None:
    """A field of 1 for x moves every bin by gamma of the RoI's width, as the same offset does in the operator."""
    layer, roi = ps_pool(gamma=0.2), tiny.rois([[8, 8, 39, 39]])
    x = tiny.float32(np.random.default_rng(1).random((1, 3, 6, 6)))
    before = layer([x], roi)
    np.testing.assert_array_equal(layer.offsets([x], roi)[0].numpy(), np.zeros((1, 2, 2, 2)))
    layer.fields.bias.set_value(tiny.float32([1] * 4 + [0] * 4))
    offset, mask = layer.offsets([x], roi)
    assert mask is None
    np.testing.assert_allclose(offset.numpy(), [[np.ones((2, 2)), np.zeros((2, 2))]], atol=1e-6)
    settings = {"gamma": 0.2, "semantics": "legacy", "sample_per_part": 2, "group_size": 2}
    maps = paddle.nn.functional.relu(layer.maps(x))
    expected = deform_roi_pool(maps, roi.boxes, roi.counts, 2, 1 / 8, offset=offset, **settings)
    np.testing.assert_allclose(layer([x], roi).numpy(), expected.numpy(), atol=1e-6)
    assert (layer([x], roi) - before).abs().max().item() > 1e-4


def test_gradients_reach_maps_and_fields() -> None:
    layer, roi = ps_pool(offset_lr=0.5), tiny.rois([[8, 8, 39, 39]], [[0, 3, 20, 40]])
    x = tiny.float32(np.random.default_rng(1).random((2, 3, 6, 6)))
    layer([x], roi).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum().item() > 0
    assert layer.fields.weight.optimize_attr["learning_rate"] == 0.5


def test_position_sensitive_pooling_needs_a_single_map() -> None:
    with pytest.raises(IncompatibleArguments, match="DeformPSRoIPool needs a single map, not 4"):
        DeformPSRoIPool([4, 8, 16, 32], 3)
