"""Image files' bytes as pixels. A JPEG that is damaged anywhere is refused: OpenCV would fill it up with grey."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import simplejpeg

from ppdet_lite.core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # what is damaged is told once, by `decode`

JPEG, EXIF = b"\xff\xd8\xff", b"Exif\x00\x00"
HARMLESS = "Invalid SOS parameters"  # a complaint about some phones' files; no pixel depends on them
ORIENTATION = 0x0112  # the tag in EXIF
TURNED = (5, 6, 7, 8)  # orientations that swap width and height
MIRRORED = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # orientation -> how cv2.flip undoes it, after transposing


def decode(content: bytes) -> np.ndarray:
    """Decode an image as RGB uint8 [H, W, 3], turned as its EXIF orientation says.

    JPEGs go to libjpeg-turbo by simplejpeg: the same pixels as OpenCV's, no slower, and its complaints are heard.
    Raises ValueError, saying what is wrong, for what is damaged or no image.
    """
    if content.startswith(JPEG):
        return _turned(_jpeg(content), _jpeg_orientation(content))
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("it is damaged or not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def load_image(path: str) -> np.ndarray:
    """Read an image file as RGB uint8 [H, W, 3], turned as its EXIF orientation says.

    Raises UserError if it is missing, damaged or no image.
    """
    try:
        content = Path(path).read_bytes()  # unlike cv2.imread, at home with every path on every system
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror or error}") from None
    try:
        return decode(content)
    except ValueError as error:
        raise UserError(f"image {path} cannot be decoded ({len(content)} bytes): {error}") from None


def exif_orientation(image: "Image.Image") -> int:
    """The EXIF orientation of an opened image, 1 where it has none; XMP does not count, as with OpenCV."""
    from PIL import Image  # Paddle brings it

    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif.get(ORIENTATION, 1)


def _jpeg(content: bytes) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError as error:
        if not str(error).startswith(HARMLESS):
            raise
    return simplejpeg.decode_jpeg(content, "RGB", strict=False)


def _jpeg_orientation(content: bytes) -> int:
    if EXIF not in content[: 1 << 17]:  # its segment is among the first, of 64 KiB at most
        return 1
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return exif_orientation(image)
    except Exception:  # Pillow's readers raise nearly anything; the pixels are good all the same
        return 1


def _turned(image: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in TURNED:
        image = cv2.transpose(image)
    return cv2.flip(image, MIRRORED[orientation]) if orientation in MIRRORED else image
