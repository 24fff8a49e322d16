"""Deformable convolutions in a ResNet: positions, initialization, and training."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import Tensor, nn

from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.deform import Deformable, DeformConv2D
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.optimization.optimizer import SGD, AdamW, Optimizer


def layer(
    stride: int = 1, dilation: int = 1, channels: int = 4, **settings: int | float | tuple[int, ...]
) -> DeformConv2D:
    """Return a layer with random weights and a branch of zeros."""
    paddle.seed(0)
    return DeformConv2D(channels, 6, 3, stride, dilation, Deformable(**settings))


def plain(conv: DeformConv2D, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, stride=conv.stride, padding=conv.padding, dilation=conv.dilation)


def noise(*shape: int) -> Tensor:
    return paddle.to_tensor(np.random.default_rng(1).standard_normal(shape).astype(np.float32))


def deformable_names(net: nn.Layer) -> set[str]:
    return {name for name, part in net.named_sublayers() if isinstance(part, DeformConv2D)}


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    scale = max(expected.abs().max().item(), 1.0)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=tolerance * scale)


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize(
    ("settings", "factor"),
    [({"version": 1}, 1.0), ({"version": 2, "mask_scale": 2}, 1.0), ({"version": 2}, 0.5), ({"groups": 2}, 0.5)],
)
def test_initially_equals_a_convolution(stride: int, dilation: int, settings: dict, factor: float) -> None:
    conv = layer(stride, dilation, **settings)
    x = noise(2, 4, 9, 12)
    assert_close(conv(x), factor * plain(conv, x))


def test_branch_has_the_output_size_of_the_convolution() -> None:
    conv = layer(2, 2, groups=2)
    assert conv.offset.weight.shape == [3 * 2 * 9, 4, 3, 3]
    assert (conv.offset._stride, conv.offset._dilation, conv.offset._updated_padding) == ([2, 2], [2, 2], [2, 2])
    assert layer(version=1, groups=2).offset.weight.shape == [2 * 2 * 9, 4, 3, 3]
    offset, mask = conv.offsets(noise(2, 4, 9, 12))
    assert (offset.shape, mask.shape) == ([2, 36, 5, 6], [2, 18, 5, 6])


@pytest.mark.parametrize(("dy", "dx"), [(0, 1), (-2, 0)])
def test_offsets_are_dy_then_dx_in_pixels(dy: int, dx: int) -> None:
    """Moving all taps equally gives the convolution of an image moved in the opposite direction."""
    conv, x = layer(version=1), noise(1, 4, 10, 10)
    bias = np.zeros(18, np.float32)
    bias[0::2], bias[1::2] = dy, dx
    conv.offset.bias.set_value(bias)
    moved = paddle.to_tensor(np.roll(x.numpy(), (-dy, -dx), axis=(2, 3)))
    assert_close(conv(x)[:, :, 3:-3, 3:-3], plain(conv, moved)[:, :, 3:-3, 3:-3])


@pytest.mark.parametrize("scale", [1, 2])
def test_mask_is_scaled_after_the_sigmoid(scale: int) -> None:
    conv, x = layer(mask_scale=scale), noise(1, 4, 6, 6)
    bias = np.zeros(27, np.float32)
    bias[18:] = 1.5
    conv.offset.bias.set_value(bias)
    assert_close(conv(x), scale / (1 + np.exp(-1.5)) * plain(conv, x))


def test_each_group_moves_its_own_channels() -> None:
    conv, x = layer(version=1, groups=2), noise(1, 4, 10, 10)
    bias = np.zeros(36, np.float32)
    bias[19::2] = 1  # dx of the second group
    conv.offset.bias.set_value(bias)
    moved = x.numpy()
    moved[:, 2:] = np.roll(moved[:, 2:], -1, axis=3)
    assert_close(conv(x)[:, :, 2:-2, 2:-2], plain(conv, paddle.to_tensor(moved))[:, :, 2:-2, 2:-2])


@pytest.mark.parametrize("settings", [Deformable(version=1), Deformable(mask_scale=2)])
def test_a_pretrained_resnet_initially_has_unchanged_output(settings: Deformable) -> None:
    paddle.seed(3)
    before, after = ResNet(18, norm="gn"), ResNet(18, norm="gn", deformable=settings)
    branch = {f"{name}.offset.{kind}" for name in deformable_names(after) for kind in ("weight", "bias")}
    assert after.state_dict().keys() == before.state_dict().keys() | branch
    after.set_state_dict({**after.state_dict(), **before.state_dict()})
    images = noise(1, 3, 64, 96)
    with paddle.no_grad():
        for found, expected in zip(after(images), before(images), strict=True):
            assert_close(found, expected)


def test_mask_scale_1_changes_the_output_of_a_resnet() -> None:
    paddle.seed(3)
    before, after = ResNet(18, norm="frozen_bn"), ResNet(18, norm="frozen_bn", deformable=Deformable(stages=(5,)))
    after.set_state_dict({**after.state_dict(), **before.state_dict()})
    with paddle.no_grad():
        images = noise(1, 3, 64, 64)
        block, x = after.res5[0], after(images)[2]
        assert_close(block.conv1.conv(x), 0.5 * before.res5[0].conv1.conv(x))
        assert (after(images)[3] - before(images)[3]).abs().max().item() > 0.01


@pytest.mark.parametrize("stages", [(5,), (3, 4, 5), (2, 4)])
@pytest.mark.parametrize("depth", [18, 50])
def test_exactly_the_3x3_convolutions_of_the_given_stages(depth: int, stages: tuple[int, ...]) -> None:
    with paddle.LazyGuard():
        before, after = ResNet(depth), ResNet(depth, deformable=Deformable(stages=stages))
    convs = {name: conv for name, conv in before.named_sublayers() if isinstance(conv, nn.Conv2D)}
    parts = {f"res{stage}" for stage in stages}
    wanted = {name for name, conv in convs.items() if conv.weight.shape[2] == 3 and name.split(".")[0] in parts}
    per_stage = {18: {2: 4, 3: 4, 4: 4, 5: 4}, 50: {2: 3, 3: 4, 4: 6, 5: 3}}[depth]
    assert len(wanted) == sum(per_stage[stage] for stage in stages)
    assert deformable_names(after) == wanted
    strides = {name: part.stride for name, part in after.named_sublayers() if isinstance(part, DeformConv2D)}
    assert strides == {name: convs[name]._stride[0] for name in wanted}


def test_names_and_shapes_match_pretrained_weights() -> None:
    with paddle.LazyGuard():
        before, after = ResNet(50), ResNet(50, deformable=Deformable())
    shapes = {name: value.shape for name, value in after.state_dict().items() if ".offset." not in name}
    assert shapes == {name: value.shape for name, value in before.state_dict().items()}
    assert shapes["res5.0.conv2.conv.weight"] == [512, 512, 3, 3]
    assert ResNet.upstream_name("layer4.0.conv2.weight") == "res5.0.conv2.conv.weight"


@pytest.mark.parametrize(
    "settings", [SGD(momentum=0.0, weight_decay=0.0), SGD(weight_decay=0.5), AdamW(weight_decay=0.0), AdamW()]
)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_branch_learns_at_its_own_rate(settings: Optimizer, scale: float) -> None:
    """The first step: SGD moves by rate * gradient, Adam by the rate itself; decay follows the rate in both."""
    conv, rate = layer(offset_lr=scale), 0.2
    bias = np.random.default_rng(0).standard_normal(27).astype(np.float32)
    conv.offset.bias.set_value(bias)
    before = {name: p.numpy() for name, p in conv.named_parameters()}
    optimizer = settings.build(conv)
    (conv(noise(1, 4, 8, 8)) ** 2).sum().backward()
    gradients = {name: p.grad.numpy() for name, p in conv.named_parameters()}
    assert all(np.abs(gradient).max() > 0 for gradient in gradients.values())
    optimizer.set_lr(rate)
    optimizer.step()
    for name, p in conv.named_parameters():
        own_rate = rate * (scale if name.startswith("offset") else 1)
        step = gradients[name] if isinstance(settings, SGD) else np.sign(gradients[name])
        expected = before[name] - own_rate * (step + settings.weight_decay * before[name])
        np.testing.assert_allclose(p.numpy(), expected, rtol=1e-4, atol=1e-4 * own_rate, err_msg=name)


def test_the_branch_of_a_frozen_stage_is_frozen() -> None:
    backbone = ResNet(18, norm="gn", frozen_stages=3, out_stages=[4], deformable=Deformable(stages=(3, 4)))
    backbone(noise(1, 3, 64, 64))[0].sum().backward()
    branches = {name: p for name, p in backbone.named_parameters() if ".offset." in name}
    assert {name.split(".")[0] for name in branches} == {"res3", "res4"}
    for name, parameter in branches.items():
        assert parameter.stop_gradient == (parameter.grad is None) == name.startswith("res3"), name
    trained = [p for group in SGD().build(backbone)._param_groups for p in group["params"]]
    assert {id(p) for p in trained} & {id(p) for p in branches.values()} == {
        id(p) for name, p in branches.items() if name.startswith("res4")
    }


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(IncompatibleArguments, match=r"deformable.groups: 3 groups do not divide the 4 channels"):
        layer(channels=4, groups=3)


def test_version_1_has_no_mask_to_scale() -> None:
    with pytest.raises(IncompatibleArguments, match="mask_scale: version 1 has no mask"):
        Deformable(version=1, mask_scale=2)
