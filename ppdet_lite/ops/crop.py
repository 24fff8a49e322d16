"""Crop and resize: image patches as network input."""

import paddle
from paddle import Tensor


@paddle.no_grad()
def crop_and_resize(image: Tensor, boxes: Tensor, size: int, extent: Tensor | None = None) -> Tensor:
    """Crop boxes from an image and resize each bilinearly: [C, H, W], [B, 4] -> float32 [B, C, size, size].

    boxes are in image pixels, continuous: the first pixel covers 0..1, with its center at 0.5. A box with x1 > x2 gives
    a mirrored patch. Outside of the image its nearest pixel is repeated. extent [2] (h, w): size of a padded image
    without its padding, which then counts as outside. Shrinking does not antialias, as in bilinear `cv2.resize`, and a
    box around the whole image gives the same values as it.

    Only the four pixels around each sample are read, so that memory depends on the patches and not on the image.
    No gradient flows to image or boxes. Positions are float64: near 1000, float32 has a resolution of only 6e-5 pixels.
    """
    channels, height, width = image.shape
    limits = paddle.to_tensor([height, width], dtype="float64") if extent is None else extent.astype("float64")
    boxes, flat = boxes.astype("float64"), image.flatten(1)
    fraction = (paddle.arange(size, dtype="float64") + 0.5) / size

    def neighbors(axis: int) -> list[Tensor]:
        """Return the indices of both pixels around each sample and the weight of the second, expanded to [B*size^2]."""
        low, high = boxes[:, 1 - axis : 2 - axis], boxes[:, 3 - axis : 4 - axis]
        position = paddle.minimum((low + fraction * (high - low) - 0.5).clip(min=0), limits[axis] - 1)
        first = position.floor()
        second = paddle.minimum(first + 1, limits[axis] - 1)
        values = first.astype("int64"), second.astype("int64"), (position - first).astype("float32")
        # expanded before any arithmetic, because operators that broadcast are ten times slower on a CPU
        return [value.unsqueeze(2 - axis).expand([-1, size, size]).flatten() for value in values]

    top, bottom, down = neighbors(0)
    left, right, across = neighbors(1)

    def interpolate_row(y: Tensor) -> Tensor:
        start = y * width
        first, second = (paddle.gather(flat, start + x, axis=1).astype("float32") for x in (left, right))
        return first + (second - first) * across

    upper, lower = interpolate_row(top), interpolate_row(bottom)
    # Mixed precision does not affect this: auto_cast converts none of these operators.
    patches = upper + (lower - upper) * down
    return patches.reshape([channels, -1, size, size]).transpose([1, 0, 2, 3])
