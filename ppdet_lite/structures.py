"""The named tuples that pass between the stages of a detector, with the shapes of their tensors.

Glossary: N images in the batch; R regions of interest (RoIs) of the whole batch, packed: those of image 0 first, then
those of image 1, ...; D detections, packed the same way; G ground-truth boxes of one image; K object classes (class K
is background, class -1 is ignored); C channels; P bins along each axis of a pooled RoI; E features of the embedding.
Boxes are float32 [x1, y1, x2, y2], continuous (width = x2 - x1), in network-input pixels unless a field says otherwise.
"""

from collections.abc import Sequence
from typing import NamedTuple

from paddle import Tensor


class Targets(NamedTuple):
    """Ground truth of one image; G = 0 is legal."""

    boxes: Tensor  # [G, 4]
    classes: Tensor  # [G] int64, 0..K-1
    crowds: Tensor  # [M, 4]: crowd regions; boxes inside them count neither as objects nor as background


class Originals(NamedTuple):
    """The images from which patches are cropped, normalized like the network input: before resizing and mirroring."""

    images: Sequence[Tensor]  # N of [3, H, W], each with its own H and W
    flipped: Sequence[bool]  # N: whether the network input is this image mirrored left to right
    sizes: Tensor | None = None  # [N, 2] (h, w) of the images without padding; None if none is padded


class Rois(NamedTuple):
    """Regions of interest of a batch, in the layout of Paddle's RoI operators: packed boxes and a count per image."""

    boxes: Tensor  # [R, 4]
    counts: Tensor  # [N] int32: RoIs per image; their sum is R
    sizes: Sequence[int] | None = None  # the counts as ints on the host, if they were computed there

    def counts_on_host(self) -> list[int]:
        """Return the counts as ints. Synchronizes with the GPU if `sizes` is None."""
        return self.counts.tolist() if self.sizes is None else list(self.sizes)


class SampledRois(NamedTuple):
    """RoIs sampled to train the box head, each with its target."""

    rois: Rois
    target_classes: Tensor  # [R] int64; K is background
    target_boxes: Tensor  # [R, 4]; arbitrary for background RoIs
    is_proposal: Tensor  # [R] bool; False for ground-truth boxes appended to the proposals
    foreground: Tensor  # [F] int64: indices of the F foreground RoIs, ascending


class BoxHeadOutput(NamedTuple):
    """Features and predictions of the box head for each RoI."""

    embedding: Tensor  # [R, E]: the box head's output
    logits: Tensor  # [R, K + 1]
    deltas: Tensor  # [R, 4K], or [R, 4] when class-agnostic


class Patches(NamedTuple):
    """B image regions, resized to squares of side S: the input of the R-CNN teacher (`modeling/mimic.py`)."""

    images: Tensor  # [B, 3, S, S], normalized
    classes: Tensor  # [B] int64; K is background


class PackedDetections(NamedTuple):
    """Final boxes of a batch; D = 0 is legal."""

    boxes: Tensor  # [D, 4], in pixels of the original image
    scores: Tensor  # [D], descending within each image
    classes: Tensor  # [D] int64
    counts: Tensor  # [N] int32: detections per image
