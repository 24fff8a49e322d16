"""Complete C4 and DC5 detectors: inputs of their parts, training, mimicking, detection, and export."""

from functools import partial
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from ppdet_lite.assembly.batch_tensors import detection_arguments, training_arguments
from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import UserError
from ppdet_lite.deployment.export import save_graph
from ppdet_lite.deployment.predictor import Predictor
from ppdet_lite.evaluation.offsets import record_arguments
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from tests import tiny
from tests.onnx_files import onnx_predictor

CLASSES = ["cat", "dog", "cow"]
BASE = [
    "model.rpn={anchors: {sizes: [[16, 32, 64]]}, pre_nms_train: 100, post_nms_train: 50}",
    "model.rpn={pre_nms_test: 100, post_nms_test: 20}",
    "model.roi_sampler.sampler.count=16",
    "model.postprocess.score_threshold=0.01",
    "model.mimic={crop_size: 64}",
]
C4 = [
    *BASE,
    "model.backbone={depth: 18, norm: gn, frozen_stages: 0, out_stages: [4]}",
    "model.neck=null",
    "model.roi_pool={type: RoIAlign, output_size: 14, levels: 1}",
    "model.box_head={type: Res5Head, depth: 18, norm: gn}",
]
DC5 = [
    *BASE,
    "model.backbone={depth: 18, norm: gn, frozen_stages: 0, out_stages: [4, 5], dilated: true}",
    "model.neck={type: Reduction, out_channels: 32}",
    "model.roi_pool={type: RoIAlign, levels: 1}",
    "model.box_head={type: TwoFCHead, width: 32}",
]
KINDS = {
    "C4": C4,
    "C4 vd, deformable head": [
        *C4,
        "model.backbone.variant=d",
        "model.box_head={type: Res5Head, depth: 18, norm: gn, variant: d, deformable: {version: 1, stages: [5]}}",
    ],
    "DC5": DC5,
    "DC5, v1 whole": [
        *DC5,
        "model.backbone.deformable={version: 1, stages: [5]}",
        "model.roi_pool={type: DeformRoIPool, levels: 1}",
    ],
    "DC5, v2 whole": [
        *DC5,
        "model.backbone.deformable={version: 2, stages: [3, 4, 5]}",
        "model.roi_pool={type: DeformRoIPool, modulated: true, levels: 1, hidden: 32}",
    ],
    "DC5, position-sensitive": [*DC5[:-2], "model.roi_pool={type: DeformPSRoIPool, out_channels: 8}", DC5[-1]],
    "DC5, all from stage 5": [*DC5, "model.backbone.out_stages=[5]", "model.neck=null"],
}
TRACED = "DC5, position-sensitive"
ROOT = Path(__file__).resolve().parents[2]


def config_of(overrides: list[str]) -> Config:
    return load_config(ROOT / "configs/quickstart/shapes_r18_fpn.yml", overrides)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> FasterRCNN:
    return build_model(config_of(KINDS[request.param]), CLASSES)


def test_a_step_trains_every_part(model: FasterRCNN) -> None:
    model.train()
    output = model(*training_arguments(tiny.batch()))
    assert {"loss_rpn_objectness", "loss_cls", "loss_box", "loss_mimic"} <= set(output.losses)
    sum(output.losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == parameter.stop_gradient, name
        assert parameter.grad is None or np.isfinite(parameter.grad.numpy()).all(), name
    model.clear_gradients()


def test_exported_detections(model: FasterRCNN, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Run by Paddle Inference; with --slow all, and by ONNX Runtime too."""
    slow = request.config.getoption("--slow")
    if request.node.callspec.params["model"] != TRACED and not slow:
        pytest.skip("a recipe or another kind has its parts: make test-slow")
    model.eval()
    save_graph(model, tmp_path)
    batch = tiny.batch()
    with paddle.no_grad():
        found = model(*detection_arguments(batch))
    columns = [found.classes.astype("float32").unsqueeze(1), found.scores.unsqueeze(1), found.boxes]
    expected = paddle.concat(columns, axis=1).numpy()
    for load in (Predictor, *([partial(onnx_predictor, model)] if slow else [])):
        predictor = load(tmp_path)
        rows, counts = predictor(batch["images"], batch["image_sizes"], batch["scales"])
        assert counts.tolist() == found.counts.tolist() and sum(counts) > 0
        np.testing.assert_allclose(ordered(rows), ordered(expected), atol=1e-3)


def ordered(rows: np.ndarray) -> np.ndarray:
    """Sort by class and position, since near-equal scores may swap."""
    return rows[np.lexsort(rows[:, [3, 2, 0]].round(1).T)]


def test_inputs_of_rpn_and_roi_pool() -> None:
    """DC5: the RPN uses stage 4, the RoIs the reduced stage 5; C4: both use stage 4."""
    for overrides, rpn_channels, roi_channels in ((DC5, 256, 32), (C4, 256, 256)):
        detector = build_model(config_of(overrides), CLASSES, for_training=False)
        detector.eval()
        with record_arguments({"rpn": detector.rpn, "roi_pool": detector.roi_pool}) as calls, paddle.no_grad():
            detector(*detection_arguments(tiny.batch()))
        seen = {name: [feature.shape for feature in arguments[0]] for name, arguments in calls.items()}
        assert seen == {"rpn": [[2, rpn_channels, 4, 6]], "roi_pool": [[2, roi_channels, 4, 6]]}


def test_the_c4_head_is_stage_5_and_average_pooling() -> None:
    head = build_model(config_of(C4), CLASSES, for_training=False).box_head
    pooled = paddle.randn([5, 256, 14, 14])
    x = pooled
    for block in head.res5:
        x = block(x)
    assert x.shape == [5, 512, 7, 7] and head.out_features == 512
    np.testing.assert_allclose(head(pooled).numpy(), x.numpy().mean(axis=(2, 3)), rtol=1e-4, atol=1e-5)
    assert isinstance(head.res5[0].conv1.norm, nn.GroupNorm)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*C4, "model.backbone.depth=50"], "model.box_head.depth: stage 5 of ResNet 18 needs the 256 channels"),
        (
            [*C4, "model.backbone.out_stages=[3, 4]"],
            "model.backbone.out_stages: has 2 stages; a detector",
        ),
        (
            [*C4, "model.box_head={type: Res5Head, depth: 18, norm: gn, deformable: {stages: [4]}}"],
            "model.box_head.deformable.stages: [4] must contain 5",
        ),
        (
            [*C4, "model.rpn={anchors: {sizes: [32, 64]}}"],
            "model.rpn.anchors.sizes: 2 anchor sizes for 1 pyramid levels (strides 16)",
        ),
        ([*C4, "model.roi_pool.levels=4"], "model.roi_pool.levels: 4 levels, but the neck has 1 (strides 16)"),
        (
            [*DC5, "model.neck={type: FPN}"],
            "model.neck.type: FPN needs each stride to be twice the one before, not [16, 16]",
        ),
    ],
)
def test_incompatible_components_are_reported_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_model(config_of(overrides), CLASSES)
    assert message in str(caught.value) and "\n" not in str(caught.value)
