"""The quality of a detector as one number, by which an export decides whether to keep a quantized model."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import paddle

from ppdet_lite.assembly import setup
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.deployment.detector import Detections, Detector
from ppdet_lite.evaluation.evaluate import evaluate
from ppdet_lite.ops.boxes import box_iou

SCORE, PARTNER_SCORE, PARTNER_IOU = 0.5, 0.4, 0.5  # of `agreement`
Measure = Callable[[Detector], float]


def quality_measure(config: Config, reference: Detector, images: Sequence[Path]) -> tuple[str, Measure]:
    """Return the name of a measure of quality, and a function that computes it for a detector.

    It is the AP on the config's validation data or, if they cannot be read or have no objects, the agreement with a
    reference on images.
    """
    try:
        dataset = setup.build_dataset(config, "val", reference.class_names)
        setup.check_images(config, "val", dataset)
        reason = "" if dataset.statistics().boxes.any() else f"{dataset.file}: no objects are annotated"
    except UserError as error:
        reason = str(error)
    if reason:
        text = "AP is not measured, but agreement with the float model on %d images: %s"
        get_logger().warning(text, len(images), reason)
        return "agreement", agreement(reference, images)
    loader = build(config["data"]["loader"])
    options = dataclasses.replace(build(config["eval"]), short_sides=None, flip=False, loss=False)
    return "AP", lambda detector: evaluate(detector, dataset, loader, options=options)["AP"]


def agreement(reference: Detector, images: Sequence[Path]) -> Measure:
    """Return a function that measures how far a detector agrees with a reference on images; 1 is full agreement.

    It is the fraction of the detections of either with a score of at least 0.5 for which the other has one of the same
    class with an IoU of at least 0.5 and a score of at least 0.4.
    """
    expected = [reference(path) for path in images]
    if not any((detections.scores >= SCORE).any() for detections in expected):
        get_logger().warning("no detection of the float model scores %g: agreement says little on these images", SCORE)

    def measure(detector: Detector) -> float:
        pairs = [(one, detector(path)) for one, path in zip(expected, images)]
        confirmed = np.concatenate([_confirmed(*order) for pair in pairs for order in (pair, pair[::-1])])
        return float(confirmed.mean()) if confirmed.size else 1.0

    return measure


def _confirmed(detections: Detections, others: Detections) -> np.ndarray:
    """Return which of the detections of one image above SCORE have a partner in `others`: a mask."""
    detections, others = detections.above(SCORE), others.above(PARTNER_SCORE)
    ious = box_iou(paddle.to_tensor(detections.boxes), paddle.to_tensor(others.boxes)).numpy()
    return ((ious >= PARTNER_IOU) & (detections.classes[:, None] == others.classes)).any(axis=1)
