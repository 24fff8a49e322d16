"""Warnings about settings of the evaluation whose effect on AP is easily overlooked."""

from ppdet_lite.assembly.recipe import Evaluation
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.evaluation_checks import MAX_COUNTED
from ppdet_lite.data.loading.augment import Augment
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.modeling.postprocess import Postprocess


def warn_about_evaluation(
    options: Evaluation, augment: Augment, preprocess: Preprocess, postprocess: Postprocess
) -> None:
    """Warn about more detections than the metric counts, and test-time augmentation at other sizes than in training.

    augment: of the training; preprocess, postprocess: of the detector.
    """
    if postprocess.max_detections > MAX_COUNTED:
        get_logger().warning(
            f"model.postprocess.max_detections is {postprocess.max_detections}, but the COCO metric counts only the "
            f"{MAX_COUNTED} best detections of a class in an image"
        )
    sides = options.short_sides or ()
    trained = augment.short_sides or (preprocess.short_side,)
    if augment.scale_jitter is None and sides and (max(sides) < min(trained) or min(sides) > max(trained)):
        get_logger().warning(
            f"training resizes short sides to {min(trained)}..{max(trained)}, but eval.short_sides are "
            f"{min(sides)}..{max(sides)}"
        )
