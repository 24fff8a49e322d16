"""FPN: upsampling and merging by hand, channels and strides."""

import numpy as np
import paddle
import pytest
from paddle import nn

from ppdet_lite.modeling.fpn import FPN
from ppdet_lite.ops import dispatch
from ppdet_lite.ops.layers import upsample_twice
from tests.tiny import float32


def constant(layer: nn.Conv2D, value: float, bias: float) -> None:
    """Make a convolution that multiplies each channel's center by `value`, sums the channels and adds the bias."""
    kernel = np.zeros(layer.weight.shape, np.float32)
    kernel[:, :, kernel.shape[2] // 2, kernel.shape[3] // 2] = value
    layer.weight.set_value(kernel)
    layer.bias.set_value(np.full(layer.bias.shape, bias, np.float32))


@pytest.mark.parametrize("on_cpu", [True, False])
def test_upsampling_repeats_each_value(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: on_cpu)
    values = np.random.default_rng(0).normal(size=(2, 3, 2, 5)).astype(np.float32)
    x = float32(values)
    x.stop_gradient = False
    out = upsample_twice(x)
    np.testing.assert_array_equal(out.numpy(), values.repeat(2, axis=2).repeat(2, axis=3))
    grad = np.arange(out.size, dtype=np.float32).reshape(out.shape)
    out.backward(float32(grad))
    np.testing.assert_array_equal(x.grad.numpy(), grad.reshape(2, 3, 2, 2, 5, 2).sum(axis=(3, 5)))


def test_merging_by_hand() -> None:
    """Lateral convolutions double or triple, output convolutions add 0.5 after a bias."""
    neck = FPN([1, 2], [4, 8], out_channels=1)
    constant(neck.lateral[0].conv, 2, 0)
    constant(neck.lateral[1].conv, 3, 1)
    constant(neck.output[0].conv, 1, 0.5)
    constant(neck.output[1].conv, 10, 0)
    fine = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 4)
    coarse = float32([[[[1, 2]], [[3, 4]]]])  # 2 channels, 1 x 2: merged 3 * (1 + 3) + 1 = 13 and 3 * (2 + 4) + 1 = 19
    levels = neck([float32(fine), coarse])
    assert [level.shape for level in levels] == [[1, 1, 2, 4], [1, 1, 1, 2], [1, 1, 1, 1]]
    np.testing.assert_allclose(levels[0].numpy()[0, 0], 2 * fine[0, 0] + [[13, 13, 19, 19]] * 2 + np.float32(0.5))
    np.testing.assert_allclose(levels[1].numpy()[0, 0], [[130, 190]])
    np.testing.assert_allclose(levels[2].numpy()[0, 0], [[130]])


def test_information_flows_down_all_levels() -> None:
    neck = FPN([1, 1, 1], [8, 16, 32], out_channels=1, extra_level=False)
    for conv in (*neck.lateral, *neck.output):
        constant(conv.conv, 1, 0)
    features = [paddle.full([1, 1, 8 // s, 12 // s], v) for s, v in ((1, 1.0), (2, 10.0), (4, 100.0))]
    assert [level.numpy().max().item() for level in neck(features)] == [111, 110, 100]
    assert [level.numpy().min().item() for level in neck(features)] == [111, 110, 100]


@pytest.mark.parametrize("extra_level", [True, False])
def test_finest_level(extra_level: bool) -> None:
    """The results are equal, and the convolutions of the finer levels are not run."""
    neck = FPN([8, 8, 8], [8, 16, 32], out_channels=4, extra_level=extra_level)
    features = [paddle.randn([2, 8, size, 2 * size]) for size in (8, 4, 2)]
    whole, run = neck(features), []
    for name, layer in neck.named_sublayers():
        if isinstance(layer, nn.Conv2D):
            layer.register_forward_pre_hook(lambda *_, name=name: run.append(name.removesuffix(".conv")))
    for finest, expected in enumerate(whole):
        run.clear()
        found = neck(features, finest)
        assert len(found) == len(whole) - finest
        np.testing.assert_array_equal(found[0].numpy(), expected.numpy())
        assert {f"output.{i}" for i in range(3)} & set(run) == {f"output.{i}" for i in range(min(finest, 2), 3)}
        assert {f"lateral.{i}" for i in range(3)} & set(run) == {f"lateral.{i}" for i in range(min(finest, 2), 3)}


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7), (1, 1)])
def test_extra_level_takes_every_second_value(height: int, width: int) -> None:
    neck = FPN([3], [32], out_channels=4)
    coarsest, extra = neck([paddle.randn([2, 3, height, width])])
    np.testing.assert_array_equal(extra.numpy(), coarsest.numpy()[:, :, ::2, ::2])


def test_channels_and_strides() -> None:
    neck = FPN([64, 128, 256], [8, 16, 32], out_channels=32)
    assert (neck.out_channels, neck.out_strides, neck.size_divisor) == (32, [8, 16, 32, 64], 32)
    neck = FPN([64, 128], [4, 8], out_channels=32, extra_level=False)
    assert (neck.out_strides, neck.size_divisor) == ([4, 8], 8)


def test_strides_must_double() -> None:
    with pytest.raises(ValueError) as error:
        FPN([64, 256], [4, 16])
    assert "FPN needs each stride to be twice the one before, not [4, 16]: choose consecutive" in str(error.value)


def test_norm_after_every_convolution() -> None:
    neck = FPN([8, 16], [4, 8], out_channels=32, norm="gn")
    for block in (*neck.lateral, *neck.output):
        assert isinstance(block.norm, nn.GroupNorm)
        assert block.conv.bias is None
    output = neck([paddle.randn([1, 8, 4, 4]), paddle.randn([1, 16, 2, 2])])[0].numpy()
    assert abs(output.mean()) < 1e-5
    assert output.var() == pytest.approx(1, abs=1e-3)


def test_initial_weights_are_uniform_by_fan_in() -> None:
    paddle.seed(0)
    neck = FPN([256], [32], out_channels=64)
    for block, fan_in in ((neck.lateral[0], 256), (neck.output[0], 64 * 9)):
        weight = block.conv.weight.numpy()
        assert np.abs(weight).max() <= np.sqrt(3 / fan_in)
        assert weight.var() == pytest.approx(1 / fan_in, rel=0.05)
        assert not block.conv.bias.numpy().any()
