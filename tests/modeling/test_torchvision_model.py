"""A whole Faster R-CNN R18-FPN, and ResNet-50's features, against torchvision's numbers (tests/goldens/README.md).

Both sides carry the weights of `inputs.weight`. The goldens are float64 results. torchvision's own float32 run differs
from them by up to 3e-5 in the features, 4e-5 in RPN logits and 1e-3 pixels in proposals; the tolerances here are about
three times that. The inputs were chosen so that no decision (order, suppression, match) changes within it. How exact a
gradient can be in float32 was measured for each parameter and lies beside it (`conditioning`: 1e-6 to 2e-3).
"""

import re

import numpy as np
import paddle
import pytest

from ppdet_lite.modeling.anchors import AnchorGenerator
from ppdet_lite.modeling.box_head import BoxPredictor, TwoFCHead
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.fpn import FPN
from ppdet_lite.modeling.matching import Matcher, Sampler
from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.modeling.roi_pool import RoIAlign
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.modeling.rpn import RPN
from ppdet_lite.structures import Rois, Targets
from tests.goldens import inputs

GOLDEN = inputs.load()
SEED = int(GOLDEN["model/seed"])
EVERYTHING = 10**6  # a sample size that no image reaches
LOSSES = ("loss_rpn_objectness", "loss_rpn_box", "loss_cls", "loss_box")

TORCH_NAMES = (  # of our parameters and buffers, rule after rule
    (r"\bstem\.conv\.", "conv1."),
    (r"\bstem\.norm\.", "bn1."),
    (r"\bres(\d)\.", lambda match: f"layer{int(match[1]) - 1}."),
    (r"\.shortcut\.conv\.", ".downsample.0."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.conv(\d)\.conv\.", r".conv\1."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\._mean$", ".running_mean"),
    (r"\._variance$", ".running_var"),
    (r"^backbone\.", "backbone.body."),
    (r"^neck\.lateral\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^neck\.output\.(\d)\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"^rpn\.conv\.", "rpn.head.conv.0.0."),
    (r"^rpn\.objectness\.", "rpn.head.cls_logits."),
    (r"^rpn\.regress\.", "rpn.head.bbox_pred."),
    (r"^box_head\.fc1\.", "roi_heads.box_head.fc6."),
    (r"^box_head\.fc2\.", "roi_heads.box_head.fc7."),
    (r"^predictor\.classify\.", "roi_heads.box_predictor.cls_score."),
    (r"^predictor\.regress\.", "roi_heads.box_predictor.bbox_pred."),
)


def torch_name(name: str) -> str:
    for pattern, replacement in TORCH_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
    """Our tensor in torchvision's layout: Linear is [out, in], background is class 0 and has (unused) deltas."""
    array = array.T if array.ndim == 2 else array
    if name.startswith("predictor.classify"):
        return np.roll(array, 1, axis=0)
    if name.startswith("predictor.regress"):
        return np.concatenate([np.zeros_like(array[:4]), array])
    return array


def from_torch(name: str, array: np.ndarray) -> np.ndarray:
    if name.startswith("predictor.classify"):
        array = np.roll(array, -1, axis=0)
    if name.startswith("predictor.regress"):
        array = array[4:]
    return array.T if array.ndim == 2 else array


def fill(model: paddle.nn.Layer, seed: int) -> None:
    state = {}
    for name, tensor in model.state_dict().items():
        shape = to_torch(name, np.zeros(tensor.shape)).shape
        state[name] = from_torch(name, inputs.weight(torch_name(name), shape, seed))
    missing, unexpected = model.set_state_dict(state)
    assert not missing
    assert not unexpected


def check_sample(name: str, tensor: paddle.Tensor, atol: float) -> None:
    """Compare the tensor at the golden positions, and its mean and standard deviation for the entries in between."""
    array = tensor.numpy().astype(np.float64).flatten()
    sample = array[inputs.positions(name, array.size, len(GOLDEN[name]))]
    np.testing.assert_allclose(sample, GOLDEN[name], rtol=1e-5, atol=atol)
    np.testing.assert_allclose([array.mean(), array.std()], GOLDEN[f"{name}/moments"], rtol=1e-5, atol=atol / 10)


def build_detector() -> FasterRCNN:
    backbone = ResNet(18, frozen_stages=0)
    neck = FPN(backbone.out_channels, backbone.out_strides)
    rpn = RPN(
        in_channels=neck.out_channels,
        in_strides=neck.out_strides,
        anchors=AnchorGenerator(inputs.SIZES, inputs.RATIOS),
        matcher=Matcher(0.7, 0.3, keep_best=True),
        sampler=Sampler(EVERYTHING, 0.5),
        nms_iou=inputs.RPN_NMS,
        pre_nms_train=inputs.PRE_NMS,
        post_nms_train=inputs.POST_NMS,
        pre_nms_test=inputs.PRE_NMS,
        post_nms_test=inputs.POST_NMS,
        min_size=1e-3,
        box_loss="smooth_l1",
    )
    model = FasterRCNN(
        backbone=backbone,
        neck=neck,
        rpn=rpn,
        roi_sampler=RoISampler(Matcher(0.5, 0.5), Sampler(EVERYTHING, 0.25)),
        roi_pool=RoIAlign(neck.out_strides, sampling_ratio=2, aligned=False),
        box_head=TwoFCHead(neck.out_channels, 7, width=inputs.HIDDEN),
        predictor=BoxPredictor(inputs.HIDDEN, inputs.NUM_CLASSES, box_loss="smooth_l1"),
        postprocess=Postprocess(inputs.SCORE_THRESHOLD, inputs.BOX_NMS, inputs.DETECTIONS),
    )
    fill(model, SEED)
    model.eval()
    return model


@pytest.fixture(scope="module")
def model() -> FasterRCNN:
    return build_detector()


@pytest.fixture(scope="module")
def images() -> paddle.Tensor:
    return paddle.to_tensor(inputs.model_images(SEED))


@pytest.fixture(scope="module")
def image_sizes() -> paddle.Tensor:
    return paddle.to_tensor(inputs.IMAGE_SIZES, dtype="float32")


@pytest.fixture(scope="module")
def features(model: FasterRCNN, images: paddle.Tensor) -> list[paddle.Tensor]:
    with paddle.no_grad():
        return model.neck(model.backbone(images))


def targets(case: str) -> list[Targets]:
    return [
        Targets(
            paddle.to_tensor(np.array(boxes, np.float32).reshape(-1, 4)),
            paddle.to_tensor(np.array(classes, np.int64)),
            paddle.zeros([0, 4]),
        )
        for boxes, classes in inputs.GROUND_TRUTH[case]
    ]


def test_resnet50_features() -> None:
    backbone = ResNet(50)
    fill(backbone, 0)
    with paddle.no_grad():
        outputs = backbone(paddle.to_tensor(inputs.uniform("resnet50/image", (1, 3, 64, 96))))
    for stage, feature in zip((2, 3, 4, 5), outputs, strict=True):
        check_sample(f"resnet50/C{stage}", feature, atol=6e-5)


def test_fpn_features(features: list[paddle.Tensor]) -> None:
    for level, feature in enumerate(features):
        check_sample(f"model/P{level + 2}", feature, atol=1e-4)


def test_rpn_head(model: FasterRCNN, features: list[paddle.Tensor]) -> None:
    logits, deltas = model.rpn(features)
    for level in range(5):
        check_sample(f"model/rpn_logits/{level}", logits[level], atol=1e-4)
        check_sample(f"model/rpn_deltas/{level}", deltas[level], atol=2e-5)


def test_proposals(model: FasterRCNN, features: list[paddle.Tensor], image_sizes: paddle.Tensor) -> None:
    anchors = model.rpn.make_anchors(features)
    proposals = model.rpn.propose(anchors, *model.rpn(features), image_sizes)
    assert proposals.counts.tolist() == [inputs.POST_NMS] * 2
    expected = np.concatenate([GOLDEN["model/proposals/0"], GOLDEN["model/proposals/1"]])
    np.testing.assert_allclose(proposals.boxes.numpy(), expected, rtol=0, atol=3e-3)


@pytest.mark.parametrize(("kind", "ratio", "aligned"), [("legacy", 2, False), ("aligned", 0, True)])
def test_box_head(model: FasterRCNN, features: list[paddle.Tensor], kind: str, ratio: int, aligned: bool) -> None:
    boxes, counts = inputs.model_rois()
    pool = RoIAlign(model.neck.out_strides, sampling_ratio=ratio, aligned=aligned)
    with paddle.no_grad():
        pooled = pool(features, Rois(paddle.to_tensor(boxes), paddle.to_tensor(counts)))
        output = model.predictor(model.box_head(pooled))
    check_sample(f"model/{kind}/pooled", pooled, atol=1e-4)
    check_sample(f"model/{kind}/embedding", output.embedding, atol=1e-4)
    logits, deltas = GOLDEN[f"model/{kind}/logits"], GOLDEN[f"model/{kind}/deltas"]
    np.testing.assert_allclose(output.logits.numpy(), np.roll(logits, -1, axis=1), rtol=1e-5, atol=2e-4)
    np.testing.assert_allclose(output.deltas.numpy(), deltas[:, 4:], rtol=1e-5, atol=1e-4)


def test_detections(model: FasterRCNN, images: paddle.Tensor, image_sizes: paddle.Tensor) -> None:
    with paddle.no_grad():
        detections = model(images, image_sizes, paddle.ones([2, 2]))
    expected = [{k: GOLDEN[f"model/detections/{i}/{k}"] for k in ("boxes", "scores", "labels")} for i in range(2)]
    assert detections.counts.tolist() == [len(e["scores"]) for e in expected]
    labels = np.concatenate([e["labels"] for e in expected])
    np.testing.assert_array_equal(detections.classes.numpy(), labels - 1)
    scores = np.concatenate([e["scores"] for e in expected])
    np.testing.assert_allclose(detections.scores.numpy(), scores, rtol=0, atol=3e-4)
    boxes = np.concatenate([e["boxes"] for e in expected])
    np.testing.assert_allclose(detections.boxes.numpy(), boxes, rtol=0, atol=1e-2)


@pytest.mark.parametrize("case", list(inputs.GROUND_TRUTH))
def test_losses_and_gradients(case: str, model: FasterRCNN, images: paddle.Tensor, image_sizes: paddle.Tensor) -> None:
    rpn_sampled = GOLDEN[f"train/{case}/counts"][1]
    per_sample = 2 * EVERYTHING / rpn_sampled  # torchvision divides by the anchors drawn, we by those asked for

    def losses() -> list[paddle.Tensor]:
        model.train()
        found = model(images, image_sizes, paddle.ones([2, 2]), targets(case)).losses
        model.eval()
        return [found[name] * (per_sample if "rpn" in name else 1.0) for name in LOSSES]

    parameters = {torch_name(name): (name, p) for name, p in model.named_parameters()}
    prefix = f"train/{case}/gradient/"
    checked = [key.removeprefix(prefix) for key in GOLDEN if key.startswith(prefix)]
    assert len(checked) == 15
    wanted = [parameters[name][1] for name in checked]
    for row in range(len(LOSSES)):
        model.clear_gradients(set_to_zero=False)
        values = losses()
        np.testing.assert_allclose([v.item() for v in values], GOLDEN[f"train/{case}/losses"], rtol=3e-5)
        values[row].backward()
        gradients = [parameter.grad for parameter in wanted]
        for name, gradient in zip(checked, gradients, strict=True):
            expected = GOLDEN[prefix + name][row]
            if gradient is None:
                assert expected[0] == 0
                continue
            array = to_torch(parameters[name][0], gradient.numpy())
            norm, entries = np.linalg.norm(array), array.flatten()[inputs.positions(f"gradient/{name}", array.size, 24)]
            norm_slack, entry_slack = 1e-5 + 3 * GOLDEN[f"train/{case}/conditioning/{name}"][row]
            np.testing.assert_allclose(norm, expected[0], rtol=norm_slack, err_msg=name)
            np.testing.assert_allclose(entries, expected[1:], rtol=0, atol=entry_slack * expected[0], err_msg=name)


@pytest.mark.parametrize("case", list(inputs.GROUND_TRUTH))
def test_l1_losses(
    case: str, model: FasterRCNN, images: paddle.Tensor, image_sizes: paddle.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.rpn, "box_loss", "l1")
    monkeypatch.setattr(model.predictor, "box_loss", "l1")
    model.train()
    with paddle.no_grad():
        losses = model(images, image_sizes, paddle.ones([2, 2]), targets(case)).losses
    model.eval()
    rpn_box = losses["loss_rpn_box"].item() * 2 * EVERYTHING / GOLDEN[f"train/{case}/counts"][1]
    np.testing.assert_allclose([rpn_box, losses["loss_box"].item()], GOLDEN[f"train/{case}/l1"], rtol=3e-5)
