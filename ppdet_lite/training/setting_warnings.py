"""Warnings about settings that are allowed but unlikely to work."""

from collections import Counter
from collections.abc import Sequence

from ppdet_lite.core.log import get_logger
from ppdet_lite.modeling.deform import DeformConv2D
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import norm_layers


def warn_about_norms(model: FasterRCNN, images_per_device: int, from_random: bool) -> None:
    """Log the norms of a model, trained and frozen, and warn about each that cannot work as configured."""
    counts = Counter((type(layer).__name__, not layer.weight.stop_gradient) for layer in norm_layers(model))
    states = [f"{count} {name} {'trained' if trained else 'frozen'}" for (name, trained), count in counts.items()]
    get_logger().info("norms: %s", ", ".join(states) or "none")
    if updated := sum(counts[name, False] for name in ("BatchNorm2D", "SyncBatchNorm")):
        get_logger().warning(
            "train.freeze freezes the weights of %d batch norms, but their running statistics still change with every "
            "batch; frozen_bn freezes both",
            updated,
        )
    teacher = None if model.mimic is None else model.mimic.backbone
    for name, backbone in {"model.backbone": model.backbone, "model.mimic.backbone": teacher}.items():
        if from_random and backbone is not None and backbone.frozen_stages:
            get_logger().warning(
                "the frozen stages of a randomly initialized backbone never learn: set %s.frozen_stages=0, "
                "or pretrain_weights",
                name,
            )
    if from_random and any(name == "FrozenBatchNorm" for name, _ in counts):
        get_logger().warning(
            "a randomly initialized frozen_bn normalizes nothing: set pretrain_weights, or another norm (gn, bn)"
        )
    if any(name == "BatchNorm2D" for name, _ in counts) and images_per_device < 2:
        get_logger().warning(
            "bn is trained on one image per device, where gn reached a higher AP (docs/evidence.md): consider gn, or "
            "frozen_bn with pretrain_weights"
        )


def warn_about_frozen_offsets(model: FasterRCNN) -> None:
    """Warn about deformable convolutions whose offsets are zero and frozen, as in stages that are frozen."""
    convolutions = [(name, layer) for name, layer in model.named_sublayers() if isinstance(layer, DeformConv2D)]
    weights = {name: layer.offset.weight for name, layer in convolutions}
    names = [name for name, weight in weights.items() if weight.stop_gradient and not bool((weight != 0).any())]
    if names:
        get_logger().warning(
            "the offsets of %d deformable convolutions (%s, ...) are frozen and stay zero: lower "
            "model.backbone.frozen_stages, or remove their stages from model.backbone.deformable",
            len(names),
            names[0],
        )


def warn_about_batch(images: int, batch_size: int, devices: int, batches: int) -> None:
    """Warn if a step has more images than the dataset. batches: number of accumulated batches per step and device."""
    total = batch_size * devices * batches
    if total > images:
        get_logger().warning(
            f"a step has {total} images ({batch_size} x {devices} devices x {batches} batches), but the dataset only "
            f"{images}: they are repeated within the step, while the learning rate is scaled for {total} different "
            f"ones; set data.loader.batch_size to {max(images // (devices * batches), 1)} or less"
        )


def warn_about_sizes(trained: Sequence[int] | None, evaluated: int) -> None:
    """Warn if the short side in evaluation is outside of the range in training: often only one of them was changed."""
    if trained is not None and not min(trained) <= evaluated <= max(trained):
        get_logger().warning(
            f"training resizes short sides to {min(trained)}..{max(trained)} (data.augment.short_sides), evaluation to "
            f"{evaluated} (data.preprocess.short_side): set data.augment.short_sides=null to train at the latter"
        )
