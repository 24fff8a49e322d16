"""PaddleDetection's detectors, converted, against what PaddleDetection itself computes (tests/oracles)."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import build_uninitialized, load_config, peer_config, state_shapes
from ppdet_lite.config.checked_config import Config
from ppdet_lite.evaluation.offsets import record_arguments
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.peers.dataset_classes import COCO_NAMES
from ppdet_lite.peers.names.ppdet import ppdet
from tests.oracles import seeded
from tests.oracles.compare import assert_found

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests/oracles/goldens/paddledetection"
CONFIGS = {  # golden file -> our config under PaddleDetection's name
    "r34_fpn": "faster_rcnn/faster_rcnn_r34_fpn_1x_coco",
    "r34_vd_fpn": "faster_rcnn/faster_rcnn_r34_vd_fpn_1x_coco",
    "r50": "faster_rcnn/faster_rcnn_r50_1x_coco",
    "r50_vd": "faster_rcnn/faster_rcnn_r50_vd_1x_coco",
    "r101": "faster_rcnn/faster_rcnn_r101_1x_coco",
    "r50_fpn": "faster_rcnn/faster_rcnn_r50_fpn_1x_coco",
    "r50_vd_fpn": "faster_rcnn/faster_rcnn_r50_vd_fpn_1x_coco",
    "r101_fpn": "faster_rcnn/faster_rcnn_r101_fpn_1x_coco",
    "r101_vd_fpn": "faster_rcnn/faster_rcnn_r101_vd_fpn_1x_coco",
    "x101_vd_64x4d_fpn": "faster_rcnn/faster_rcnn_x101_vd_64x4d_fpn_1x_coco",
    "dcn_r50_fpn": "dcn/faster_rcnn_dcn_r50_fpn_1x_coco",
    "dcn_r50_vd_fpn": "dcn/faster_rcnn_dcn_r50_vd_fpn_1x_coco",
    "dcn_r101_vd_fpn": "dcn/faster_rcnn_dcn_r101_vd_fpn_1x_coco",
    "dcn_x101_vd_64x4d_fpn": "dcn/faster_rcnn_dcn_x101_vd_64x4d_fpn_1x_coco",
    "r50_fpn_gn": "gn/faster_rcnn_r50_fpn_gn_2x_coco",
    "cascade_r50_fpn": "cascade_rcnn/cascade_rcnn_r50_fpn_1x_coco",
    "cascade_r50_vd_fpn": "cascade_rcnn/cascade_rcnn_r50_vd_fpn_ssld_1x_coco",
    "cascade_dcn_r50_fpn": "dcn/cascade_rcnn_dcn_r50_fpn_1x_coco",
    "cascade_dcn_x101_vd_64x4d_fpn": "dcn/cascade_rcnn_dcn_x101_vd_64x4d_fpn_1x_coco",
    "cascade_r50_fpn_gn": "gn/cascade_rcnn_r50_fpn_gn_2x_coco",
}
ONLY_SLOW = {  # their parts are in others too
    *("r50_vd", "r101", "r101_fpn", "r101_vd_fpn", "dcn_r101_vd_fpn", "x101_vd_64x4d_fpn"),
    "dcn_x101_vd_64x4d_fpn",
    *(name for name in CONFIGS if name.startswith("cascade_") and name != "cascade_r50_fpn"),
}
SAME_MODEL = {  # what trains longer or from other weights, and the config whose model it has
    "faster_rcnn/faster_rcnn_r50_fpn_2x_coco": "r50_fpn",
    "faster_rcnn/faster_rcnn_r50_vd_fpn_2x_coco": "r50_vd_fpn",
    "faster_rcnn/faster_rcnn_r50_vd_fpn_ssld_1x_coco": "r50_vd_fpn",
    "faster_rcnn/faster_rcnn_r50_vd_fpn_ssld_2x_coco": "r50_vd_fpn",
    "faster_rcnn/faster_rcnn_r101_fpn_2x_coco": "r101_fpn",
    "faster_rcnn/faster_rcnn_r101_vd_fpn_2x_coco": "r101_vd_fpn",
    "faster_rcnn/faster_rcnn_x101_vd_64x4d_fpn_2x_coco": "x101_vd_64x4d_fpn",
    "dcn/faster_rcnn_dcn_r50_vd_fpn_2x_coco": "dcn_r50_vd_fpn",
    "cascade_rcnn/cascade_rcnn_r50_vd_fpn_ssld_2x_coco": "cascade_r50_vd_fpn",
}


def ppdet_config(name: str, *overrides: str) -> Config:
    return peer_config(ROOT / f"configs/{name}.yml", "ppdet", overrides)


@pytest.fixture(scope="module", params=CONFIGS)
def converted(request: pytest.FixtureRequest) -> tuple[FasterRCNN, np.lib.npyio.NpzFile]:
    """A detector of ours with PaddleDetection's weights, and what PaddleDetection found with them."""
    if request.param in ONLY_SLOW and not request.config.getoption("--slow"):
        pytest.skip("its parts are in other goldens: make test-slow")
    golden = np.load(GOLDENS / f"{request.param}.npz")
    config = ppdet_config(CONFIGS[request.param], f"model.rpn.post_nms_test={int(golden['post_nms'])}")
    model = build_uninitialized(config, COCO_NAMES)
    model.eval()
    shapes = {name: tuple(shape) for name, shape in json.loads(str(golden["weights"])).items()}
    theirs = seeded.fill(shapes)
    peer = ppdet(state_shapes(model))
    report = peer.to_ours(state_shapes(model), theirs)
    assert report.is_complete, report.summary()
    again = peer.to_theirs(report.matched)
    assert again.keys() == theirs.keys() and all(np.array_equal(again[name], theirs[name]) for name in theirs)
    model.set_state_dict(report.matched)
    return model, golden


def test_features_proposals_and_detections_are_theirs(converted: tuple[FasterRCNN, np.lib.npyio.NpzFile]) -> None:
    """On three images: features to 1e-5 of their size, boxes to 1e-2 pixels, scores to 1e-4, as many of them."""
    model, golden = converted
    for number in range(len(seeded.SIZES)):
        image, scale = seeded.image(number), 0.5 + 0.25 * number
        size = paddle.to_tensor([image.shape[2:]], dtype="float32")
        pools = [layer for name, layer in model.named_sublayers() if name.endswith("roi_pool")]
        pools = [*pools[1:], pools[0]]  # that of a cascade's last stage comes first
        parts = {"neck": model.neck, "rpn": model.rpn, **{f"pool{k}": pool for k, pool in enumerate(pools, 1)}}
        with paddle.no_grad(), record_arguments(parts) as calls:
            found = model(paddle.to_tensor(image), size, paddle.to_tensor([[scale, scale]], dtype="float32"))
        features = {f"{number}.backbone{i}": value for i, value in enumerate(calls["neck"][0])}
        if f"{number}.neck0.shape" in golden:
            features |= {f"{number}.neck{i}": value for i, value in enumerate(calls["rpn"][0])}
        assert f"{number}.backbone{len(calls['neck'][0])}.shape" not in golden
        for label, value in features.items():
            array = value.numpy()
            assert list(array.shape) == golden[f"{label}.shape"].tolist()
            sampled = array.ravel()[seeded.places(label, array.shape)]
            expected = golden[f"{label}.values"]
            gap = np.abs(np.concatenate([[array.mean(), array.std()], sampled]) - expected).max()
            assert gap < 1e-5 * np.abs(expected).max(), label
        stages = [calls[f"pool{k}"][1].boxes.numpy() for k in range(1, len(pools) + 1)]
        assert len(stages[0]) == golden[f"{number}.proposal_count"]
        assert_found(golden[f"{number}.proposals"], stages[0], [1e-2] * 4)
        assert len(stages) == (3 if f"{number}.rois2" in golden else 1)
        for k, rois in enumerate(stages[1:], 2):
            assert_found(golden[f"{number}.rois{k}"], rois, [1e-2] * 4)
        rows = [found.classes.astype("float32").unsqueeze(1), found.scores.unsqueeze(1), found.boxes]
        detections, expected = paddle.concat(rows, axis=1).numpy(), golden[f"{number}.detections"]
        assert len(detections) == len(expected) > 50
        not_empty = expected[:, 0] >= 0  # PaddleDetection returns boxes that clipping made empty, as class -1
        assert not_empty.sum() >= len(expected) - 1
        assert_found(expected[not_empty], detections, [0.0, 1e-4, *[1e-2] * 4])


@pytest.mark.parametrize(("name", "golden"), SAME_MODEL.items())
def test_longer_recipes_have_the_same_model(name: str, golden: str) -> None:
    even = ["model.backbone.stage_lr=[1, 1, 1, 1]"]
    own, proven = (load_config(ROOT / f"configs/{path}.yml", even) for path in (name, CONFIGS[golden]))
    assert own["model"] == proven["model"] and own["data"]["preprocess"] == proven["data"]["preprocess"]
