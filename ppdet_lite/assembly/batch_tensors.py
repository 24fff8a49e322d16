"""Conversion of a loader's batch (NumPy arrays) to the arguments of a detector's `forward` (tensors)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from ppdet_lite.structures import Originals, Targets


def detection_arguments(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return images [N, 3, H, W], image sizes [N, 2] and scales [N, 2]; see `FasterRCNN.forward`."""
    return tuple(paddle.to_tensor(batch[key]) for key in ("images", "image_sizes", "scales"))


def training_arguments(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, list[Targets], Originals | None]:
    """Return `detection_arguments`, the targets and, if the batch contains them, the original images (else None)."""
    originals = None
    if "original_images" in batch:
        images = [paddle.to_tensor(image) for image in batch["original_images"]]
        originals = Originals(images, [bool(flipped) for flipped in batch["flipped"]])
    return (*detection_arguments(batch), [_targets(part) for part in batch["targets"]], originals)


def _targets(part: Mapping[str, np.ndarray]) -> Targets:
    """Convert the targets of one image. Crowds are separated on the host, since on a GPU that would synchronize."""
    is_crowd = np.asarray(part["is_crowd"], bool)
    boxes = np.asarray(part["boxes"], np.float32).reshape(-1, 4)
    classes = np.asarray(part["classes"], np.int64)
    return Targets(*map(paddle.to_tensor, (boxes[~is_crowd], classes[~is_crowd], boxes[is_crowd])))
