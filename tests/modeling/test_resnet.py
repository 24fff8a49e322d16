"""ResNet: shapes, sizes of the papers' models, freezing, and equal results to Paddle's ResNet."""

import numpy as np
import paddle
import pytest
from paddle import nn
from paddle.vision import models

from ppdet_lite.modeling.deform import Deformable
from ppdet_lite.modeling.norm import FrozenBatchNorm, GroupNorm
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.ops.layers import max_pool

PARTS = ["stem", "res2", "res3", "res4", "res5"]  # in the order in which they are frozen


@pytest.fixture(scope="module")
def images() -> paddle.Tensor:
    paddle.seed(7)
    return paddle.randn([2, 3, 64, 96])


def is_statistic(name: str) -> bool:
    return name.endswith(("._mean", "._variance"))


def norms(part: nn.Layer) -> set[type]:
    return {type(layer) for layer in part.sublayers() if hasattr(layer, "_mean") or isinstance(layer, nn.GroupNorm)}


def test_out_stages(images: paddle.Tensor) -> None:
    backbone = ResNet(18, out_stages=[2, 4])
    with paddle.no_grad():
        features = backbone(images)
    assert (backbone.out_channels, backbone.out_strides) == ([64, 256], [4, 16])
    assert [f.shape for f in features] == [[2, 64, 16, 24], [2, 256, 4, 6]]
    assert not hasattr(backbone, "res5")  # nothing reads it


@pytest.mark.parametrize("stages", [[], [3, 2], [4, 4]])
def test_stages_must_ascend(stages: list[int]) -> None:
    with pytest.raises(ValueError) as error:
        ResNet(18, out_stages=stages)
    assert str(error.value) == f"out_stages: expected ascending stages out of 2..5, got {stages}"


def test_a_resnet_needs_norms() -> None:
    with pytest.raises(ValueError) as error:
        ResNet(18, norm="none", out_stages=[2])
    assert str(error.value) == "norm: a ResNet without norms cannot be trained; choose bn, frozen_bn, gn, ln or in"


@pytest.mark.parametrize(("in_1x1", "strides"), [(False, [1, 2, 1]), (True, [2, 1, 1])])
def test_where_a_bottleneck_downsamples(in_1x1: bool, strides: list[int]) -> None:
    backbone = ResNet(50, out_stages=[3], variant="a" if in_1x1 else "b")
    block, second = backbone.res3[0], backbone.res3[1]
    assert [conv.conv._stride[0] for conv in (block.conv1, block.conv2, block.conv3)] == strides
    assert block.shortcut.conv._stride == [2, 2]
    assert second.shortcut is None
    assert [conv.conv._stride[0] for conv in (second.conv1, second.conv2, second.conv3)] == [1, 1, 1]


@pytest.mark.parametrize("frozen_stages", [0, 1, 2, 4])
def test_frozen_stages_do_not_train(frozen_stages: int, images: paddle.Tensor) -> None:
    """They get no gradient and their BN statistics do not change; all other parameters get one and change."""
    backbone = ResNet(18, norm="bn", frozen_stages=frozen_stages, out_stages=[2, 3, 4])
    frozen, trained = PARTS[:frozen_stages], PARTS[frozen_stages:4]
    before = {name: value.numpy() for name, value in backbone.state_dict().items()}
    features = backbone(images)
    if trained:
        sum(f.sum() for f in features).backward()
    for name, parameter in backbone.named_parameters():
        if not is_statistic(name):
            assert (parameter.grad is None) == parameter.stop_gradient == (name.split(".")[0] in frozen), name
    for name, value in backbone.state_dict().items():
        if is_statistic(name):
            assert (value.numpy() != before[name]).any() == (name.split(".")[0] in trained), name


@pytest.mark.parametrize(
    ("norm", "in_frozen", "in_others"),
    [
        ("bn", FrozenBatchNorm, nn.BatchNorm2D),
        ("frozen_bn", FrozenBatchNorm, FrozenBatchNorm),
        ("frozen_stats_bn", FrozenBatchNorm, FrozenBatchNorm),
        ("gn", GroupNorm, GroupNorm),
    ],
)
def test_norm_of_each_stage(norm: str, in_frozen: type, in_others: type) -> None:
    backbone = ResNet(18, norm=norm, frozen_stages=2, out_stages=[3])
    found = [norms(getattr(backbone, part)) for part in PARTS[:3]]
    assert found == [{in_frozen}, {in_frozen}, {in_others}]


def test_frozen_stats_bn_learns_in_trained_stages_only() -> None:
    backbone = ResNet(18, norm="frozen_stats_bn", frozen_stages=1, out_stages=[2])
    assert backbone.stem.norm.weight.stop_gradient
    assert not backbone.res2[0].conv1.norm.weight.stop_gradient


def test_group_norm_learns_nothing_in_a_frozen_stage() -> None:
    assert ResNet(18, norm="gn", frozen_stages=1, out_stages=[2]).stem.norm.weight.stop_gradient


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("conv1.weight", "stem.conv.weight"),
        ("bn1._variance", "stem.norm._variance"),
        ("layer1.0.conv1.weight", "res2.0.conv1.conv.weight"),
        ("layer3.22.bn3.bias", "res4.22.conv3.norm.bias"),
        ("layer4.0.downsample.0.weight", "res5.0.shortcut.conv.weight"),
        ("layer4.0.downsample.1.running_mean", "res5.0.shortcut.norm._mean"),
        ("layer2.1.bn2.running_var", "res3.1.conv2.norm._variance"),
        ("fc.weight", "fc.weight"),
    ],
)
def test_upstream_names(theirs: str, ours: str) -> None:
    assert ResNet.upstream_name(theirs) == ours


def test_same_features_as_paddles_resnet(images: paddle.Tensor) -> None:
    paddle.seed(18)
    theirs = models.resnet18()
    for layer in theirs.sublayers():
        if isinstance(layer, nn.BatchNorm2D):  # statistics and affine that are not the identity
            layer._mean.set_value(paddle.randn(layer._mean.shape) * 0.1)
            layer._variance.set_value(paddle.rand(layer._variance.shape) + 0.5)
            layer.weight.set_value(paddle.rand(layer.weight.shape) * 0.5 + 0.2)
            layer.bias.set_value(paddle.randn(layer.bias.shape) * 0.1)
    theirs.eval()
    ours = ResNet(18)
    assert (ours.out_channels, ours.out_strides) == ([64, 128, 256, 512], [4, 8, 16, 32])
    state = {ResNet.upstream_name(name): value for name, value in theirs.state_dict().items()}
    missing, unexpected = ours.set_state_dict(state)
    assert missing == []
    assert sorted(unexpected) == ["fc.bias", "fc.weight"]
    with paddle.no_grad():
        expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for stage, found in enumerate(ours(images), start=1):
            expected = getattr(theirs, f"layer{stage}")(expected)
            assert found.shape == expected.shape == [2, 32 * 2**stage, 32 // 2**stage, 48 // 2**stage]
            assert (found - expected).abs().max().item() < 1e-5 * expected.abs().max().item()


def parameter_count(part: nn.Layer) -> int:
    return sum(p.size for name, p in part.named_parameters() if not is_statistic(name))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"depth": 152}, 58_143_808),
        ({"depth": 50, "groups": 32, "base_width": 4}, 22_979_904),
        ({"depth": 101, "groups": 64, "base_width": 4}, 81_406_272),
    ],
    ids=["152", "50 32x4d", "101 64x4d"],
)
def test_models_of_the_papers_have_their_size(arguments: dict, expected: int) -> None:
    """The parameter counts of torchvision, without the classifier."""
    with paddle.LazyGuard():
        assert parameter_count(ResNet(**arguments)) == expected


def test_variant_d_has_a_deep_stem_and_a_pooled_shortcut(images: paddle.Tensor) -> None:
    paddle.seed(3)
    backbone = ResNet(18, norm="gn", frozen_stages=0, out_stages=[2, 3], variant="d")
    stem = backbone.stem
    assert [conv.conv.weight.shape for conv in (stem.conv1, stem.conv2, stem.conv3)] == [
        [32, 3, 3, 3],
        [32, 32, 3, 3],
        [64, 32, 3, 3],
    ]
    x = paddle.nn.functional.relu(stem.conv1(images))
    x = stem.conv3(paddle.nn.functional.relu(stem.conv2(x)))
    assert (stem(images) - x).abs().max().item() == 0 and x.shape == [2, 64, 32, 48]
    assert backbone.res2[0].shortcut is None
    block, x = backbone.res3[0], backbone(images)[0]
    assert block.shortcut.conv._stride == [1, 1]
    means = x.reshape([2, 64, 8, 2, 12, 2]).mean(axis=[3, 5])
    difference = block.identity(x) - block.shortcut(means)
    assert difference.abs().max().item() < 1e-5


def test_the_pooled_shortcut_of_an_odd_size_has_the_mean_of_the_pixels_that_exist() -> None:
    """The 3x3 convolution with stride 2 rounds the size up, and so must the shortcut."""
    block = ResNet(18, norm="gn", frozen_stages=0, out_stages=[3], variant="d").res3[0]
    x = paddle.rand([1, 64, 5, 3])
    assert block(x).shape == [1, 128, 3, 2]
    pooled = block.pool(x).numpy()
    np.testing.assert_allclose(pooled[:, :, 0, 0], x.numpy()[:, :, :2, :2].mean(axis=(2, 3)), rtol=1e-5)
    np.testing.assert_allclose(pooled[:, :, 2, 0], x.numpy()[:, :, 4, :2].mean(axis=2), rtol=1e-5)
    np.testing.assert_allclose(pooled[:, :, 2, 1], x.numpy()[:, :, 4, 2], rtol=1e-5)


def test_only_the_first_block_of_stage_2_can_start_with_a_projection() -> None:
    for project in (False, True):
        backbone = ResNet(34, norm="gn", out_stages=[3], project_stage_2=project)
        assert [block.shortcut is not None for block in backbone.res2] == [project, False, False]
        assert [block.shortcut is not None for block in backbone.res3] == [True, False, False, False]


def test_the_rate_of_a_stage_multiplies_that_of_its_offsets() -> None:
    offsets = Deformable(stages=(3,), offset_lr=0.1)
    backbone = ResNet(18, norm="gn", out_stages=[3], stage_lr=(1.0, 0.5, 1.0, 1.0), deformable=offsets)
    conv = backbone.res3[0].conv2.conv
    rates = [p.optimize_attr["learning_rate"] for p in (conv.weight, conv.offset.weight, conv.offset.bias)]
    assert rates == pytest.approx([0.5, 0.05, 0.05])
    assert backbone.res2[0].conv1.conv.weight.optimize_attr["learning_rate"] == 1.0


def test_variant_c_has_a_deep_stem_only() -> None:
    backbone = ResNet(18, norm="gn", out_stages=[3], variant="c")
    assert hasattr(backbone.stem, "conv3") and backbone.res3[0].pool is None


@pytest.mark.parametrize("depth", [18, 50])
def test_a_dilated_stage_5_keeps_the_stride(depth: int, images: paddle.Tensor) -> None:
    """All its 3x3 convolutions have dilation 2, as in detectron2 and the deformable papers."""
    backbone = ResNet(depth, out_stages=[4, 5], dilated=True)
    assert backbone.out_strides == [16, 16]
    with paddle.no_grad():
        assert [f.shape[2:] for f in backbone(images)] == [[4, 6], [4, 6]]
    convs = [layer for layer in backbone.res5.sublayers() if isinstance(layer, nn.Conv2D)]
    spread = {(conv._kernel_size[0], conv._dilation[0], conv._padding) for conv in convs}
    assert spread <= {(3, 2, 2), (1, 1, 0)} and (3, 2, 2) in spread
    assert all(conv._stride == [1, 1] for conv in convs)
    plain = {name: value.shape for name, value in ResNet(depth).res5.state_dict().items()}
    assert {name: value.shape for name, value in backbone.res5.state_dict().items()} == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18, "groups": 32}, "groups: applies to bottleneck blocks only: choose depth 50"),
        ({"depth": 34, "base_width": 4}, "base_width: applies to bottleneck blocks only"),
        (
            {"deformable": Deformable(stages=[4, 5]), "out_stages": [4]},
            r"deformable.stages: stages \[5\] are not built",
        ),
        ({"dilated": True, "out_stages": [4]}, "dilated: applies to stage 5"),
    ],
)
def test_incompatible_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)


def test_a_grouped_convolution_can_be_deformable() -> None:
    """With offsets of 0 and masks of 1 it equals the grouped convolution."""
    paddle.seed(5)
    settings = Deformable(version=2, stages=(3,), mask_scale=2)
    deformable = ResNet(50, norm="gn", out_stages=[3], groups=8, base_width=8, deformable=settings)
    plain = ResNet(50, norm="gn", out_stages=[3], groups=8, base_width=8)
    missing, unexpected = plain.set_state_dict(deformable.state_dict())
    assert not missing and all(".offset." in name for name in unexpected)
    assert deformable.res3[0].conv2.conv.weight.shape == plain.res3[0].conv2.conv.weight.shape == [128, 16, 3, 3]
    x = paddle.randn([1, 3, 32, 64])
    with paddle.no_grad():
        assert (deformable(x)[0] - plain(x)[0]).abs().max().item() < 1e-4


@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_pooling_and_its_gradient_are_paddles(size: tuple[int, int]) -> None:
    """Bit-identical, also for equal values, which integers and the zeros of ReLU provide."""
    paddle.seed(0)
    image = paddle.nn.functional.relu(paddle.randint(-3, 3, [2, 5, *size]).astype("float32"))
    found = []
    for pool in (max_pool, lambda x: paddle.nn.functional.max_pool2d(x, 3, 2, 1)):
        x = image.clone().detach()
        x.stop_gradient = False
        out = pool(x)
        out.backward(paddle.arange(out.size, dtype="float32").reshape(out.shape))
        found.append((out.numpy(), x.grad.numpy()))
    for ours, theirs in zip(*found, strict=True):
        assert (ours == theirs).all()
