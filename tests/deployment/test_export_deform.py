"""Exported deformable models with nonzero offsets have the same detections, with and without oneDNN."""

from pathlib import Path

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import RunFailed
from ppdet_lite.data.loading.transforms import collate, image_sample
from ppdet_lite.data.synthetic.shapes import scene
from ppdet_lite.deployment.description import Description
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.deployment.export import compare, export, graph_operators
from ppdet_lite.deployment.predictor import Predictor
from ppdet_lite.evaluation.offsets import deformable_parts, offset_statistics
from ppdet_lite.modeling.deform import DeformConv2D
from tests.onnx_packages import MISSING
from tests.random_detector import random_detector
from tests.tiny_run import WITHOUT_STAGE_5

CONFIG = Path(__file__).resolve().parents[2] / "configs/quickstart/shapes_r18_fpn.yml"
SMALL = [
    *WITHOUT_STAGE_5,
    "model.neck.out_channels=32",
    "model.box_head.width=64",
    "model.rpn.pre_nms_test=50",
    "model.rpn.post_nms_test=40",
    "model.postprocess={score_threshold: 0.2, max_detections: 30}",
    "data.preprocess={short_side: 96, long_side: 160}",
]
MODELS = {  # of two parts each, since an export takes seconds
    "dconv, dpool": [
        "model.backbone.deformable={version: 1, stages: [4]}",
        "model.roi_pool={type: DeformRoIPool, modulated: false, branch: mmcv, hidden: 32, sampling_ratio: 2}",
    ],
    "mdconv, mdpool": [
        "model.backbone.deformable={version: 2, stages: [3, 4], groups: 2, mask_scale: 2}",
        "model.roi_pool={type: DeformRoIPool, modulated: true, hidden: 32}",
    ],
}


@pytest.mark.parametrize("name", ["mdconv, mdpool", pytest.param("dconv, dpool", marks=pytest.mark.slow)])
def test_graph_and_model_have_the_same_detections(name: str, tmp_path: Path) -> None:
    """`export` compares Paddle and ONNX in batches of 1 and 2, with oneDNN; this test also runs without it."""
    detector = random_detector(load_config(CONFIG, [*SMALL, *MODELS[name]]))
    picture = image_sample(scene(np.random.default_rng(0), 400)[0], detector.preprocess, 0)
    batch = collate([picture], detector.preprocess)
    moved = offset_statistics(detector.model, batch)
    assert all(value > 0.05 for key, value in moved.items() if key.endswith("mean")) and moved
    agreement = export(detector, tmp_path / "model", format="paddle" if MISSING else "both")
    assert agreement.detections > 30 and agreement.box_gap < 2e-3 and agreement.score_gap < 1e-4
    plain = Detector(Predictor(tmp_path / "model", onednn=False), Description.from_trained(detector), "without oneDNN")
    assert compare(Detector.from_trained(detector), plain).detections == agreement.detections
    assert "pd_op.deformable_conv" not in graph_operators(tmp_path / "model")  # slow on a CPU

    others = [plain] if MISSING else [plain, Detector.load(tmp_path / "model/model.onnx")]
    last_conv_and_pool = list(deformable_parts(detector.model).values())[-2:]
    for part in last_conv_and_pool:  # the comparison is worth something: it misses their offsets
        branch = part.offset if isinstance(part, DeformConv2D) else part
        kept = [parameter.numpy() for parameter in branch.parameters()]
        for parameter in branch.parameters():
            parameter.set_value(paddle.zeros_like(parameter))
        for exported in others:
            with pytest.raises(RunFailed, match="only the trained model finds"):
                compare(Detector.from_trained(detector), exported)
        for parameter, value in zip(branch.parameters(), kept, strict=True):
            parameter.set_value(value)
