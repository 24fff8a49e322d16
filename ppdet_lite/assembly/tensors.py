"""A batch of the loader as the arguments of a detector's forward."""

from collections.abc import Mapping
from typing import Any

import paddle
from paddle import Tensor

from ppdet_lite.structures import Originals, Targets


def detection_arguments(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Images [N, 3, H, W], image sizes [N, 2] and scales [N, 2], see `FasterRCNN.forward`."""
    return tuple(paddle.to_tensor(batch[key]) for key in ("images", "image_sizes", "scales"))


def training_arguments(
    batch: Mapping[str, Any],
) -> tuple[Tensor, Tensor, Tensor, list[Targets], Originals | None]:
    """`detection_arguments`, then the targets and, where the batch has them, the original images."""
    originals = None
    if "original_images" in batch:
        images = [paddle.to_tensor(image) for image in batch["original_images"]]
        originals = Originals(images, paddle.to_tensor(batch["flipped"]))
    targets = [
        Targets(
            paddle.to_tensor(target["boxes"], dtype="float32").reshape([-1, 4]),
            paddle.to_tensor(target["classes"], dtype="int64"),
            paddle.to_tensor(target["is_crowd"], dtype="bool"),
        )
        for target in batch["targets"]
    ]
    return (*detection_arguments(batch), targets, originals)
