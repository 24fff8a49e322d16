"""Warnings of settings that are allowed and can hardly work."""

from collections import Counter
from collections.abc import Sequence

from paddle import nn

from ppdet_lite.core.log import get_logger
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import FrozenBatchNorm

NORMS = (nn.BatchNorm2D, nn.SyncBatchNorm, nn.GroupNorm, FrozenBatchNorm)
FEW_IMAGES = 8  # per device: below, a batch norm's statistics are poor (Wu and He 2018, figure 1)


def warn_about_norms(model: FasterRCNN, images_per_device: int, from_random: bool) -> None:
    """Log which norms a model has, what of them is trained, and a warning for each that cannot work as it is used."""
    norms = [layer for layer in model.sublayers() if isinstance(layer, NORMS)]
    counts = Counter((type(layer).__name__, not layer.weight.stop_gradient) for layer in norms)
    states = [f"{count} {name} {'trained' if trained else 'frozen'}" for (name, trained), count in counts.items()]
    get_logger().info("norms: %s", ", ".join(states) or "none")
    if gathering := sum(counts[name, False] for name in ("BatchNorm2D", "SyncBatchNorm")):
        get_logger().warning(
            "train.freeze holds the weights of %d batch norms, whose statistics go on with every batch: "
            "frozen_bn holds both",
            gathering,
        )
    own = None if model.mimic is None else model.mimic.backbone
    for name, backbone in {"model.backbone": model.backbone, "model.mimic.backbone": own}.items():
        if from_random and backbone is not None and backbone.frozen_stages:
            get_logger().warning(
                "frozen stages of a backbone from random initialisation never learn: set %s.frozen_stages=0, "
                "or pretrain_weights",
                name,
            )
    if from_random and any(name == "FrozenBatchNorm" for name, _ in counts):
        get_logger().warning(
            "frozen_bn from random initialisation normalises nothing: set pretrain_weights, or another norm (gn, bn)"
        )
    if any(name == "BatchNorm2D" for name, _ in counts) and images_per_device < FEW_IMAGES:
        get_logger().warning(
            "bn is trained on %d images per device; its statistics are poor below %d: consider gn, or frozen_bn with "
            "pretrain_weights",
            *(images_per_device, FEW_IMAGES),
        )


def warn_about_batch(images: int, batch_size: int, devices: int, batches: int) -> None:
    """Log a warning where a step takes more images than there are: then they are not what the rate is scaled for."""
    taken = batch_size * devices * batches
    if taken > images:
        get_logger().warning(
            "a step takes %d images (%d x %d devices x %d batches), there are %d: it is filled by taking them again, "
            "and the learning rate is scaled for %d different ones: set data.loader.batch_size to %d or less",
            *(taken, batch_size, devices, batches, images, taken, max(images // (devices * batches), 1)),
        )


def warn_about_sizes(trained: Sequence[int] | None, evaluated: int) -> None:
    """Log a warning where evaluation's size is none that training draws from, as when a config changes one of two."""
    if trained is not None and not min(trained) <= evaluated <= max(trained):
        get_logger().warning(
            "training resizes short sides to %d..%d (data.augment.short_sides), evaluation to %d "
            "(data.preprocess.short_side): set data.augment.short_sides=null to train at the latter",
            *(min(trained), max(trained), evaluated),
        )
