"""Crop and resize: image patches as network input."""

import paddle
import paddle.nn.functional as F
from paddle import Tensor


@paddle.no_grad()
def crop_and_resize(image: Tensor, boxes: Tensor, size: int, extent: Tensor | None = None) -> Tensor:
    """Cut boxes out of an image and resize each to a square, bilinearly: [C, H, W], [B, 4] -> [B, C, size, size].

    boxes are in pixels of the image, continuous: its first pixel reaches from 0 to 1 and its value stands at 0.5. One
    with x1 > x2 gives a mirrored patch. Beyond the border the nearest pixel counts, so that the box of a whole image
    gives what `cv2.resize` gives. Between pixels of a large box none are averaged, as there. extent [2] (h, w): the
    border is there, not at the end of the image, which is padded.
    Nothing flows back to image or boxes. Positions are float64: near 1000, float32 knows them to 6e-5 pixels only.
    """
    channels, height, width = image.shape
    boxes = boxes.astype("float64")
    share = (paddle.arange(size, dtype="float64") + 0.5) / size
    x, y = (
        low + share * (high - low) for low, high in ((boxes[:, i : i + 1], boxes[:, i + 2 : i + 3]) for i in (0, 1))
    )
    if extent is not None:
        last = extent.astype("float64") - 0.5
        y, x = paddle.minimum(y, last[0]), paddle.minimum(x, last[1])
    # One grid for all boxes, patch below patch: the image is neither repeated nor gathered.
    grid = paddle.stack(paddle.broadcast_tensors([x.unsqueeze(1) / width, y.unsqueeze(2) / height]), axis=-1) * 2 - 1
    source = image.astype("float64").unsqueeze(0)
    with paddle.amp.auto_cast(enable=False):
        flat = F.grid_sample(source, grid.reshape([1, -1, size, 2]), padding_mode="border", align_corners=False)
    return flat.reshape([channels, -1, size, size]).transpose([1, 0, 2, 3]).astype(image.dtype)
