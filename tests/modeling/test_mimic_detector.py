"""The R-CNN teacher in a detector: the parameters that it trains, and no effect on other losses and detections."""

import contextlib
from collections.abc import Iterator

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.modeling.box_head import ConvFCHead
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.fpn import FPN
from ppdet_lite.modeling.matching import Matcher
from ppdet_lite.modeling.mimic import RCNNTeacher
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.structures import Rois, Targets
from tests import tiny

LOSSES = ("loss_mimic", "loss_mimic_cls")
MIMIC = {"rois_per_image": 3, "include_ground_truth": True, "crop_size": 32}


def state(model: nn.Layer) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def losses_of(model: FasterRCNN, targets: list[Targets] | None = None, iteration: int | None = None):
    images, sizes, scales, truth, originals = training_arguments(tiny.batch())
    paddle.seed(1)
    return model(images, sizes, scales, truth if targets is None else targets, originals, iteration)


def parts(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("pool", ["align", "plain", "modulated"])
@pytest.mark.parametrize("crop_from", ["original", "network"])
def test_mimicking_losses_train_the_shared_parts(pool: str, crop_from: str) -> None:
    """Backbone, neck, RoI pooling, box head and the teacher's classifier, but not RPN and predictor."""
    model = tiny.detector(pool=pool, mimic={**MIMIC, "crop_from": crop_from})
    before = state(model)
    found = losses_of(model).losses
    sum(found[name] for name in LOSSES).backward()
    optimizer = paddle.optimizer.SGD(1.0, parameters=model.parameters())
    optimizer.step()
    moved = {name for name, value in state(model).items() if (value != before[name]).any()}
    expected = {"backbone", "neck", "box_head", "mimic"} | ({"roi_pool"} if pool != "align" else set())
    assert parts(moved) == expected
    for part in ("backbone", "box_head", "mimic"):
        assert {name for name in before if name.startswith(f"{part}.")} <= moved


@pytest.mark.parametrize("stopped", ["none", "teacher", "student"])
def test_either_side_alone_trains_the_backbone(stopped: str) -> None:
    model = tiny.detector(mimic={**MIMIC, "stop_gradient": stopped})
    losses_of(model).losses["loss_mimic"].backward()
    assert model.backbone.stem.conv.weight.grad.numpy().any()
    assert model.mimic.classify.weight.grad is None  # it has a loss of its own


def test_the_classification_loss_trains_the_backbone() -> None:
    model = tiny.detector(mimic={**MIMIC, "stop_gradient": "teacher"})
    losses_of(model).losses["loss_mimic_cls"].backward()
    assert model.backbone.stem.conv.weight.grad.numpy().any()
    assert model.box_head.fc2.weight.grad.numpy().any()


def test_other_losses_do_not_change() -> None:
    model = tiny.detector("bn", mimic=MIMIC)
    plain = tiny.detector("bn")
    plain.set_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("mimic.")})
    found, expected = losses_of(model), losses_of(plain)
    assert expected.patches is None
    assert list(found.losses) == [*expected.losses, *LOSSES]
    assert {name: found.losses[name].item() for name in expected.losses} == {
        name: value.item() for name, value in expected.losses.items()
    }


def test_patches_do_not_change_running_statistics() -> None:
    """The running statistics are bit-identical to those after the same step without the teacher."""
    model, plain = tiny.detector("bn", mimic=MIMIC), tiny.detector("bn")
    fresh = {n: v for n, v in state(model).items() if not n.startswith("mimic.")}
    plain.set_state_dict(fresh)
    for detector in (model, plain):
        sum(losses_of(detector).losses.values()).backward()
    expected = state(plain)
    moved = 0
    for name, value in state(model).items():
        if name.endswith(("._mean", "._variance")):
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
            moved += (value != fresh[name]).any()
    assert moved == 40  # means and variances of 20 norms: training does count images
    assert {layer._momentum for layer in model.sublayers() if isinstance(layer, nn.BatchNorm2D)} == {0.9}


def test_patches_do_not_change_statistics_of_neck_and_head() -> None:
    """Those of neck and box head do not change either."""
    model = tiny.detector("bn", mimic=MIMIC)
    model.neck = FPN(model.backbone.out_channels, model.backbone.out_strides, 32, norm="bn")
    model.box_head = ConvFCHead(32, 3, convs=1, conv_channels=32, width=64, norm="bn")
    before = state(model)
    model._embed_patches(paddle.randn([2, 3, 32, 32]))
    statistics = [name for name in before if name.endswith(("._mean", "._variance"))]
    assert {name.split(".")[0] for name in statistics} == {"backbone", "neck", "box_head"}
    assert all((state(model)[name] == before[name]).all() for name in statistics)


@pytest.mark.parametrize("guarded", ["cosine_similarity", "cross_entropy"])
def test_losses_are_computed_in_float32(guarded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paddle ignores `auto_cast` on a CPU, so the test checks that it is disabled around them."""
    states, seen = [True], []
    plain = getattr(F, guarded)

    @contextlib.contextmanager
    def auto_cast(enable: bool = True) -> Iterator[None]:
        states.append(enable)
        yield
        states.pop()

    def watched(*arguments: object, **options: object) -> paddle.Tensor:
        seen.append(states[-1])
        return plain(*arguments, **options)

    model = tiny.detector(mimic=MIMIC)
    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)
    monkeypatch.setattr(F, guarded, watched)
    assert losses_of(model).patches is not None
    assert seen and seen[-1] is False
    assert guarded == "cross_entropy" or not any(seen)  # the box head has a cross entropy too


def test_patches_are_normalized_by_their_own_statistics() -> None:
    """A patch's features do not depend on the running statistics, which are meaningless at first."""
    model = tiny.detector("bn", mimic=MIMIC)
    patches = paddle.randn([2, 3, 32, 32])
    expected = model._embed_patches(patches).numpy()
    for name, value in model.state_dict().items():
        if name.endswith("._mean"):
            value.set_value(paddle.full_like(value, 5.0))
    np.testing.assert_array_equal(model._embed_patches(patches).numpy(), expected)


@pytest.mark.parametrize("pool", ["align", "plain", "modulated"])
def test_a_patch_is_an_image_with_a_single_roi(pool: str) -> None:
    model = tiny.detector(pool=pool)
    if pool != "align":  # offsets that move
        last = model.roi_pool.offset[-1]
        last.weight.set_value(0.02 * paddle.randn(last.weight.shape))
    model.mimic = RCNNTeacher(64, tiny.NUM_CLASSES)
    patches = paddle.randn([3, 3, 64, 64])
    found = model._embed_patches(patches).numpy()
    for patch, embedding in zip(patches, found, strict=True):
        features = model.neck(model.backbone(patch.unsqueeze(0)))
        whole = Rois(paddle.to_tensor([[0.0, 0.0, 64.0, 64.0]]), paddle.ones([1], dtype="int32"))
        expected = model.box_head(model.roi_pool(features, whole)).numpy()[0]
        np.testing.assert_allclose(embedding, expected, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


@pytest.mark.parametrize("crop_from", ["original", "network"])
def test_losses_and_metrics_equal_a_loop_over_rois(crop_from: str) -> None:
    """For each RoI: its feature, a patch cropped by a loop, the patch's feature, and their cosine.

    The second image is mirrored and stretched; group norms let every patch stand alone.
    """
    options = {"rois": "both", "rois_per_image": 16, "crop_size": 32, "loss_weight": 1.0, "cls_loss_weight": 1.0}
    model, batch = tiny.detector(pool="modulated", mimic={**options, "crop_from": crop_from}), tiny.batch()
    last = model.roi_pool.offset[-1]
    last.weight.set_value(0.02 * paddle.randn(last.weight.shape))
    batch["targets"][1] = {**batch["targets"][0], "boxes": np.float32([[10, 10, 60, 30], [5, 20, 25, 45]])}
    images, sizes, scales, targets, originals = training_arguments(batch)
    paddle.seed(1)
    found = model(images, sizes, scales, targets, originals)

    features = model.neck(model.backbone(images))
    proposals = model.rpn.propose(model.rpn.make_anchors(features), *model.rpn(features), sizes)
    paddle.seed(1)
    sampled = model.roi_sampler(proposals, targets, tiny.NUM_CLASSES)
    cosines, surprise, correct, start = [], [], [], 0
    for i, count in enumerate(sampled.rois.counts.tolist()):
        for row in range(start, start + count):
            if not sampled.is_proposal[row].item():
                continue
            x1, y1, x2, y2 = sampled.rois.boxes[row].numpy().astype(np.float64)
            single = Rois(sampled.rois.boxes[row : row + 1], tiny.int32([j == i for j in range(2)]))
            student = model.box_head(model.roi_pool(features, single)).numpy()[0]
            height, width = batch["image_sizes"][i].astype(int)
            if crop_from == "network":
                patch = tiny.slow_crop(batch["images"][i][:, :height, :width], [x1, y1, x2, y2], 32)
            else:
                mirrored, scale = batch["flipped"][i], batch["scales"][i]
                x1, x2 = (width - x2, width - x1) if mirrored else (x1, x2)
                box = [x1 / scale[1], y1 / scale[0], x2 / scale[1], y2 / scale[0]]
                patch = tiny.slow_crop(batch["original_images"][i], box, 32)[:, :, :: -1 if mirrored else 1]
            whole = tiny.rois([[0, 0, 32, 32]])
            pyramid = model.neck(model.backbone(tiny.float32(patch[None])))
            teacher = model.box_head(model.roi_pool(pyramid, whole))
            cosines.append(student @ teacher.numpy()[0] / np.linalg.norm(student) / np.linalg.norm(teacher.numpy()))
            scores = model.mimic.classify(teacher).numpy()[0].astype(np.float64)
            surprise.append(np.log(np.exp(scores).sum()) - scores[sampled.target_classes[row].item()])
            correct.append(scores.argmax() == sampled.target_classes[row].item())
        start += count
    assert sampled.rois.counts.tolist() == [16, 16] and 24 <= len(cosines) < 32
    assert found.losses["loss_mimic"].item() == pytest.approx(np.mean(1 - np.array(cosines)), rel=1e-4)
    assert found.losses["loss_mimic_cls"].item() == pytest.approx(np.mean(surprise), rel=1e-4)
    assert found.metrics["mimic_cosine"].item() == pytest.approx(np.mean(cosines), abs=1e-5)
    assert found.metrics["mimic_accuracy"].item() == pytest.approx(np.mean(correct)) and 0 < np.mean(correct) < 1


def test_a_patch_of_224_is_pooled_from_the_level_of_stride_16() -> None:
    model = tiny.detector(mimic=MIMIC)
    patches = paddle.randn([1, 3, 224, 224])
    model._embed_patches(patches).sum().backward()
    gradients = [level.conv.weight.grad for level in model.neck.output]  # strides 4, 8, 16, 32
    assert gradients[0] is gradients[1] is gradients[3] is None  # finer levels are not even computed
    assert gradients[2].numpy().any()


def nothing_positive() -> list[Targets]:
    return [tiny.targets(), tiny.targets()]


@pytest.mark.parametrize("how", ["no objects", "too early"])
@pytest.mark.parametrize("own_backbone", [False, True])
def test_without_positive_rois_losses_and_gradients_are_zero(how: str, own_backbone: bool) -> None:
    """Every weight still has a gradient, for which other ranks wait."""
    paddle.seed(0)
    backbone = ResNet(18, norm="gn", frozen_stages=0) if own_backbone else None
    model = tiny.detector(mimic={**MIMIC, "backbone": backbone, "start_iteration": 5})
    found = losses_of(model, nothing_positive()) if how == "no objects" else losses_of(model, iteration=4)
    assert [found.losses[name].item() for name in LOSSES] == [0, 0]
    assert found.patches is None
    assert found.metrics["mimic_rois"].item() == 0 and "mimic_cosine" not in found.metrics
    sum(found.losses.values()).backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad.numpy()
        assert np.isfinite(gradient).all(), name
        if name.startswith("mimic."):
            assert not gradient.any(), name


@pytest.mark.parametrize(("iteration", "on"), [(None, True), (0, False), (4, False), (5, True), (6, True)])
def test_start_iteration(iteration: int | None, on: bool) -> None:
    model = tiny.detector(mimic={**MIMIC, "start_iteration": 5})
    found = losses_of(model, iteration=iteration)
    assert (found.losses["loss_mimic"].item() > 0) is on
    assert (found.patches is not None) is on


def test_an_image_without_objects_beside_one_with() -> None:
    """The second image has none; patches come from the first: ground truth and proposals that overlap it."""
    model = tiny.detector(mimic=MIMIC)
    found = losses_of(model)
    count = found.patches.classes.shape[0]
    assert 2 <= count <= 3 and found.patches.images.shape == [count, 3, 32, 32]
    assert set(found.patches.classes.tolist()) <= {0, 2}
    assert found.metrics["mimic_rois"].item() == count / 2
    assert -1 <= found.metrics["mimic_cosine"].item() <= 1
    assert found.metrics["mimic_accuracy"].item() in [i / count for i in range(count + 1)]
    assert found.losses["loss_mimic"].item() == pytest.approx(
        0.1 * (1 - found.metrics["mimic_cosine"].item()), abs=1e-6
    )


def test_all_rois_can_be_mimicked() -> None:
    """All proposals, without the appended ground truth."""
    model = tiny.detector(mimic={**MIMIC, "rois": "both", "rois_per_image": 100, "include_ground_truth": False})
    model.roi_sampler = RoISampler(Matcher(0.999, 0.999), model.roi_sampler.sampler)  # only ground truth is foreground
    found = losses_of(model)
    assert set(found.patches.classes.tolist()) == {tiny.NUM_CLASSES}


def test_a_separate_backbone_of_the_teacher() -> None:
    paddle.seed(0)
    own = ResNet(18, norm="gn", frozen_stages=0)
    model = tiny.detector(mimic={**MIMIC, "backbone": own, "stop_gradient": "student"})
    found = losses_of(model).losses
    sum(found[name] for name in LOSSES).backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert all(parameter.grad.numpy().any() for parameter in model.mimic.parameters())


def test_the_teacher_does_not_change_detections() -> None:
    model, plain = tiny.detector("bn", pool="modulated", mimic=MIMIC), tiny.detector("bn", pool="modulated")
    losses_of(model)  # statistics move
    plain.set_state_dict({n: v for n, v in model.state_dict().items() if not n.startswith("mimic.")})
    images, sizes, scales, *_ = training_arguments(tiny.batch())
    for detector in (model, plain):
        detector.eval()
    calls = []
    model.mimic.register_forward_pre_hook(lambda *_: calls.append(1))
    with paddle.no_grad():
        for found, expected in zip(model(images, sizes, scales), plain(images, sizes, scales), strict=True):
            np.testing.assert_array_equal(found.numpy(), expected.numpy())
    assert calls == []


def test_missing_original_images_are_reported() -> None:
    images, sizes, scales, targets, _ = training_arguments(tiny.batch())
    model = tiny.detector(mimic=MIMIC)
    assert model.needs_originals
    with pytest.raises(ValueError, match="pass originals, or set crop_from=network"):
        model(images, sizes, scales, targets)
    network = tiny.detector(mimic={**MIMIC, "crop_from": "network"})
    assert not network.needs_originals and not tiny.detector().needs_originals
    assert network(images, sizes, scales, targets).patches is not None


def test_incompatible_arguments_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"mimic.crop_size: 100 is not a multiple of 32.* choose 96$"):
        tiny.detector(mimic={**MIMIC, "crop_size": 100})
    with pytest.raises(ValueError, match=r"mimic.backbone: has .*256.* but the neck needs .*64, 128, 256, 512"):
        tiny.detector(mimic={**MIMIC, "backbone": ResNet(50)})
    with pytest.raises(ValueError, match=r"mimic.include_ground_truth: with rois: background, no ground truth"):
        tiny.detector(mimic={**MIMIC, "rois": "background"})
    parts = tiny.detector(mimic=MIMIC)
    with pytest.raises(
        ValueError, match=r"mimic.include_ground_truth: the RoIs contain no ground truth.*append_ground_truth to true"
    ):
        FasterRCNN(
            *(parts.backbone, parts.neck, parts.rpn, parts.roi_pool, parts.box_head, parts.predictor),
            roi_sampler=RoISampler(append_ground_truth=False),
            mimic=parts.mimic,
        )
    synchronised = ResNet(18, norm="gn")
    synchronised.stem.norm = nn.SyncBatchNorm(64)
    with pytest.raises(ValueError, match=r"mimic: cannot be combined with sync_bn"):
        tiny.detector(mimic={**MIMIC, "backbone": synchronised})
