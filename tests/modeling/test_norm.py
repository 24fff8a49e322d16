"""Norms against NumPy, and the convolution with a norm."""

import numpy as np
import paddle
import pytest
from paddle import nn

from ppdet_lite.modeling.norm import ConvNorm, FrozenBatchNorm, build_norm, copy_running_statistics
from tests.operators import count_operators
from tests.tiny import float32

EPSILON = 1e-5
RNG = np.random.default_rng(0)
X = RNG.normal(2.0, 3.0, (2, 64, 3, 5)).astype(np.float32)
WEIGHT, BIAS, MEAN = (RNG.standard_normal(64).astype(np.float32) for _ in range(3))
VARIANCE = RNG.uniform(0.5, 2.0, 64).astype(np.float32)


def column(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64).reshape(-1, 1, 1)


def standardised(x: np.ndarray, groups: int) -> np.ndarray:
    """Normalize each group of channels of each image to mean 0 and variance 1."""
    out = np.empty(x.shape)
    size = x.shape[1] // groups
    for image, group in np.ndindex(len(x), groups):
        part = x[image, group * size : (group + 1) * size].astype(np.float64)
        out[image, group * size : (group + 1) * size] = (part - part.mean()) / np.sqrt(part.var() + EPSILON)
    return out


def with_parameters(norm: nn.Layer, stored: bool = False) -> nn.Layer:
    norm.weight.set_value(WEIGHT)
    norm.bias.set_value(BIAS)
    if stored:
        norm._mean.set_value(MEAN)
        norm._variance.set_value(VARIANCE)
    return norm


@pytest.mark.parametrize(("name", "groups"), [("gn", 32), ("ln", 1), ("in", 64)])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_of_an_image(name: str, groups: int, training: bool) -> None:
    norm = with_parameters(build_norm(name, 64))
    norm.train() if training else norm.eval()
    expected = standardised(X, groups) * column(WEIGHT) + column(BIAS)
    np.testing.assert_allclose(norm(float32(X)).numpy(), expected, atol=1e-4)


def test_batch_norm() -> None:
    """Training uses batch statistics and updates the running ones by a tenth; evaluation uses the running ones."""
    norm = with_parameters(build_norm("bn", 64))
    mean, variance = X.mean(axis=(0, 2, 3), dtype=np.float64), X.var(axis=(0, 2, 3), dtype=np.float64)
    found = norm(float32(X)).numpy()
    expected = (X - column(mean)) / np.sqrt(column(variance) + EPSILON) * column(WEIGHT) + column(BIAS)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(norm._mean.numpy(), 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm._variance.numpy(), 0.9 + 0.1 * variance, rtol=1e-5)
    norm.eval()
    scale = column(WEIGHT) / np.sqrt(0.9 + 0.1 * column(variance) + EPSILON)
    np.testing.assert_allclose(norm(float32(X)).numpy(), (X - 0.1 * column(mean)) * scale + column(BIAS), atol=1e-4)


@pytest.mark.parametrize("name", ["frozen_bn", "frozen_stats_bn"])
@pytest.mark.parametrize("training", [True, False])
def test_frozen_batch_norm_is_a_fixed_affine_transform(name: str, training: bool) -> None:
    norm = with_parameters(build_norm(name, 64), stored=True)
    norm.train() if training else norm.eval()
    expected = (X - column(MEAN)) / np.sqrt(column(VARIANCE) + EPSILON) * column(WEIGHT) + column(BIAS)
    np.testing.assert_allclose(norm(float32(X)).numpy(), expected, atol=1e-4)
    np.testing.assert_array_equal(norm._mean.numpy(), MEAN)
    np.testing.assert_array_equal(norm._variance.numpy(), VARIANCE)


@pytest.mark.parametrize(("name", "trainable"), [("frozen_bn", False), ("frozen_stats_bn", True)])
def test_gradients_of_frozen_batch_norm(name: str, trainable: bool) -> None:
    norm = with_parameters(build_norm(name, 64), stored=True)
    x, given = float32(X), np.random.default_rng(1).standard_normal(X.shape)
    x.stop_gradient = False
    (norm(x) * float32(given)).sum().backward()
    deviation = np.sqrt(column(VARIANCE) + EPSILON)
    np.testing.assert_allclose(x.grad.numpy(), given * column(WEIGHT) / deviation, atol=1e-4)
    assert norm.weight.stop_gradient == norm.bias.stop_gradient == (not trainable)
    if not trainable:
        assert norm.weight.grad is None
        assert norm.bias.grad is None
        return
    by_weight = (given * (X - column(MEAN)) / deviation).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(norm.weight.grad.numpy(), by_weight, atol=1e-3)
    np.testing.assert_allclose(norm.bias.grad.numpy(), given.sum(axis=(0, 2, 3)), atol=1e-4)


def test_frozen_batch_norm_with_another_epsilon() -> None:
    norm, x = with_parameters(FrozenBatchNorm(64, epsilon=0.5), stored=True), float32(X)
    x.stop_gradient = False
    scale = column(WEIGHT) / np.sqrt(column(VARIANCE) + 0.5)
    out = norm(x)
    np.testing.assert_allclose(out.numpy(), (X - column(MEAN)) * scale + column(BIAS), atol=1e-4)
    out.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), np.broadcast_to(scale, X.shape), atol=1e-4)


def test_initial_frozen_batch_norm_is_the_identity() -> None:
    np.testing.assert_allclose(FrozenBatchNorm(64)(float32(X)).numpy(), X, rtol=1e-5)


def test_frozen_batch_norm_loads_weights_of_batch_norm() -> None:
    trained, frozen = with_parameters(build_norm("bn", 64), stored=True), FrozenBatchNorm(64)
    missing, unexpected = frozen.set_state_dict(trained.state_dict())
    assert (missing, unexpected) == ([], [])
    trained.eval()
    np.testing.assert_allclose(frozen(float32(X)).numpy(), trained(float32(X)).numpy(), atol=1e-5)


def test_running_statistics_are_copied_by_one_operator_and_restored() -> None:
    constant = [FrozenBatchNorm(64), nn.BatchNorm2D(64, use_global_stats=True), build_norm("gn", 64)]
    net = nn.Sequential(build_norm("bn", 64), nn.Conv2D(64, 5, 1), build_norm("bn", 5))
    net[0]._mean.set_value(MEAN)
    before = {name: value.numpy() for name, value in net.state_dict().items()}
    restores = []
    assert count_operators(lambda: restores.append(copy_running_statistics(nn.Sequential(*constant, net)))) == {
        "concat": 1
    }
    assert not count_operators(lambda: copy_running_statistics(nn.Sequential(*constant)))
    net(float32(X))
    names = ("0._mean", "0._variance", "2._mean", "2._variance")
    assert not any(np.array_equal(net.state_dict()[name].numpy(), before[name]) for name in names)
    restores[0]()
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)


def test_no_norm() -> None:
    assert build_norm("none", 64) is None


@pytest.mark.parametrize(
    ("name", "channels", "message"),
    [
        ("gn", 48, "gn has 32 groups: the number of channels must be a multiple of 32, not 48"),
        ("batch", 64, "unknown norm 'batch'"),
        pytest.param(
            *("sync_bn", 64, "sync_bn needs a GPU; on a CPU choose bn, frozen_bn or gn"),
            marks=pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="a GPU build has it"),
        ),
    ],
)
def test_impossible_norms(name: str, channels: int, message: str) -> None:
    with pytest.raises(ValueError) as error:
        build_norm(name, channels)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "shape"),
    [
        (1, 1, 1, [7, 10]),
        (3, 1, 1, [7, 10]),
        (3, 1, 2, [7, 10]),
        (3, 2, 1, [4, 5]),
        (1, 2, 1, [4, 5]),
        (7, 2, 1, [4, 5]),
    ],
)
def test_conv_norm_pads_to_the_same_size(kernel: int, stride: int, dilation: int, shape: list[int]) -> None:
    conv = ConvNorm(3, 2, kernel, stride, dilation)
    assert conv(paddle.zeros([1, 3, 7, 10])).shape == [1, 2, *shape]


def test_conv_norm_against_loops() -> None:
    rng = np.random.default_rng(2)
    conv, x = ConvNorm(2, 32, 3, stride=2, dilation=2, norm="ln"), rng.standard_normal((1, 2, 6, 5)).astype(np.float32)
    padded, kernel = np.pad(x[0], ((0, 0), (2, 2), (2, 2))), conv.conv.weight.numpy()
    raw = np.zeros((32, 3, 3))
    for o, i, j in np.ndindex(raw.shape):
        raw[o, i, j] = (padded[:, 2 * i : 2 * i + 5 : 2, 2 * j : 2 * j + 5 : 2] * kernel[o]).sum()
    np.testing.assert_allclose(conv(float32(x)).numpy(), standardised(raw[None], 1), atol=1e-4)


def test_conv_norm_has_a_bias_or_a_norm() -> None:
    plain, normed = ConvNorm(4, 32, 1), ConvNorm(4, 32, 1, norm="gn")
    assert plain.norm is None
    assert plain.conv.bias.shape == [32]
    assert isinstance(normed.norm, nn.GroupNorm)
    assert normed.conv.bias is None
