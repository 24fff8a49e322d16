"""Crop and resize: image patches as network input."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor


@paddle.no_grad()
def crop_and_resize(image: Tensor, boxes: Tensor, size: int, extent: Tensor | None = None) -> Tensor:
    """Crop boxes from an image and resize each to a square, bilinearly: [C, H, W], [B, 4] -> [B, C, size, size].

    boxes are in image pixels, continuous: the first pixel covers 0..1, with its center at 0.5. A box with x1 > x2 gives
    a mirrored patch. Outside of the image its nearest pixel is repeated. extent [2] (h, w): size of a padded image
    without its padding, which then counts as outside. Shrinking does not antialias, as in bilinear `cv2.resize`, and a
    box around the whole image gives the same values as it.
    No gradient flows to image or boxes. Positions are float64: near 1000, float32 has a resolution of only 6e-5 pixels.
    """
    channels, height, width = image.shape
    boxes = boxes.astype("float64")
    fraction = (paddle.arange(size, dtype="float64") + 0.5) / size
    x, y = (
        low + fraction * (high - low) for low, high in ((boxes[:, i : i + 1], boxes[:, i + 2 : i + 3]) for i in (0, 1))
    )
    if extent is not None:
        last_center = extent.astype("float64") - 0.5
        y, x = paddle.minimum(y, last_center[0]), paddle.minimum(x, last_center[1])
    # One grid samples all patches, stacked vertically, so that the image is not repeated per box.
    grid = paddle.stack(paddle.broadcast_tensors([x.unsqueeze(1) / width, y.unsqueeze(2) / height]), axis=-1) * 2 - 1
    source = image.astype("float64").unsqueeze(0)
    with paddle.amp.auto_cast(enable=False):
        flat = F.grid_sample(source, grid.reshape([1, -1, size, 2]), padding_mode="border", align_corners=False)
    return flat.reshape([channels, -1, size, size]).transpose([1, 0, 2, 3]).astype(image.dtype)
