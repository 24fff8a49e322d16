"""What passes between the stages of a detector, with shapes.

Glossary: N images in the batch, R regions of interest (RoIs) of the whole batch packed one image after the other,
D detections packed likewise, K object classes (background is class K, "ignore" is -1), C channels.
Boxes are float32 [x1, y1, x2, y2], continuous (width = x2 - x1), in network-input pixels unless a field says otherwise.
"""

from collections.abc import Sequence
from typing import NamedTuple

from paddle import Tensor


class Targets(NamedTuple):
    """Ground truth of one image; G = 0 is legal."""

    boxes: Tensor  # [G, 4]
    classes: Tensor  # [G] int64, 0..K-1
    crowds: Tensor  # [C, 4]: regions full of objects, which are neither objects nor background


class Originals(NamedTuple):
    """What patches are cut out of: images before resizing and mirroring, normalised as the network's input is."""

    images: Sequence[Tensor]  # N of [3, H, W], each of its own size
    flipped: Sequence[bool]  # N: whether the network's input is mirrored left to right
    sizes: Tensor | None = None  # [N, 2] (h, w): how much of each image is no padding, where that is not all


class Rois(NamedTuple):
    """Regions of interest of a batch, packed as Paddle's RoI operators take them."""

    boxes: Tensor  # [R, 4]
    counts: Tensor  # [N] int32, sums to R
    sizes: Sequence[int] | None = None  # the counts too, where they are known without asking the device

    def counts_on_host(self) -> list[int]:
        """The counts as ints; the device is waited for where `sizes` does not tell."""
        return self.counts.tolist() if self.sizes is None else list(self.sizes)


class SampledRois(NamedTuple):
    """RoIs drawn for training the box head, each with its target."""

    rois: Rois
    target_classes: Tensor  # [R] int64; K is background
    target_boxes: Tensor  # [R, 4]; arbitrary where the target is background
    is_proposal: Tensor  # [R] bool; False for ground-truth boxes appended to the proposals
    foreground: Tensor  # [F] int64, ascending: the rows whose target is an object


class BoxHeadOutput(NamedTuple):
    """What a box head says of each RoI."""

    embedding: Tensor  # [R, D]
    logits: Tensor  # [R, K + 1]
    deltas: Tensor  # [R, 4K], or [R, 4] when class-agnostic


class Patches(NamedTuple):
    """Pieces of images, each resized to a square, as the R-CNN teacher sees them."""

    images: Tensor  # [B, 3, S, S], normalised
    classes: Tensor  # [B] int64; K is background


class PackedDetections(NamedTuple):
    """Final boxes of a batch; D = 0 is legal."""

    boxes: Tensor  # [D, 4], original-image pixels
    scores: Tensor  # [D], each image's in descending order
    classes: Tensor  # [D] int64
    counts: Tensor  # [N] int32
