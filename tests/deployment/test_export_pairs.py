"""The comparison of an exported model's detections with the trained model's: which of them are pairs."""

import numpy as np
import pytest

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import RunFailed
from ppdet_lite.deployment import export as export_module
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.deployment.detector import Detector
from tests.deployment.test_export import make_detector


@pytest.fixture(scope="module")
def detector() -> TrainedModel:
    return make_detector()


def detections(*rows: tuple[int, float, float]) -> ImageDetections:
    """(class, score, x1) of boxes of 10 x 20 pixels."""
    classes, scores, x = np.array(rows).reshape(-1, 3).T
    boxes = np.stack([x, 0 * x, x + 10, 0 * x + 20], axis=1)
    return ImageDetections(0, boxes.astype(np.float32), scores.astype(np.float32), classes.astype(np.int64))


def pair(detector: TrainedModel, trained: ImageDetections, exported: ImageDetections) -> tuple[int, float, float]:
    return export_module._pair(Detector.from_trained(detector), trained, exported, 1e-3)


def test_pairing_does_not_depend_on_the_order(detector: TrainedModel) -> None:
    trained = detections((0, 0.9, 50), (1, 0.8, 10), (1, 0.8, 70))
    exported = detections((0, 0.90005, 50), (1, 0.8, 70.0005), (1, 0.8, 10))
    count, box_gap, score_gap = pair(detector, trained, exported)
    assert count == 3
    assert box_gap == pytest.approx(0.0005, rel=0.02) and score_gap == pytest.approx(0.00005, rel=0.02)
    assert pair(detector, detections(), detections()) == (0, 0, 0)


@pytest.mark.parametrize(
    ("trained", "exported", "text"),
    [
        (
            [(0, 0.9, 50)],
            [(0, 0.9, 50.5)],
            r"only the trained model finds cat 0\.90000 at \[50\.0, 0\.0, 60\.0, 20\.0\]; the other model's nearest "
            r"differs by 0\.5 px and 0 in score",
        ),
        ([(0, 0.9, 50)], [(0, 0.89, 50)], r"nearest differs by 0 px and 0\.01 in score"),
        ([(0, 0.9, 50)], [(1, 0.9, 50)], "trained model finds cat .* the other model finds none of that class"),
        ([(0, 0.9, 50)], [(0, 0.9, 50), (1, 0.5, 9)], "only the exported model finds dog 0.5"),
        ([(0, 0.9, 50)], [(0, np.nan, 50)], "only the trained model finds cat"),
        ([], [(2, 0.3, np.nan)], "only the exported model finds naïve"),
    ],
)
def test_differences_are_described(detector: TrainedModel, trained: list, exported: list, text: str) -> None:
    with pytest.raises(RunFailed, match=text):
        pair(detector, detections(*trained), detections(*exported))


def test_rounding_may_decide_near_the_limit(detector: TrainedModel) -> None:
    # 0.2 is the threshold; with 30 detections an image is full
    assert pair(detector, detections((0, 0.9, 50), (1, 0.20004, 0)), detections((0, 0.9, 50)))[0] == 1
    full = [(0, 0.9, 20 * i) for i in range(29)]
    assert pair(detector, detections(*full, (1, 0.5, 0)), detections(*full, (2, 0.49996, 0)))[0] == 29
    with pytest.raises(RunFailed):
        pair(detector, detections(*full[:28], (1, 0.5, 0)), detections(*full[:28], (2, 0.49996, 0)))
