"""Decodes image files strictly: a damaged JPEG is an error, where OpenCV would fill the missing part with grey."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import simplejpeg

from ppdet_lite.core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # `decode` reports damage itself

JPEG, EXIF = b"\xff\xd8\xff", b"Exif\x00\x00"
HARMLESS_WARNING = "Invalid SOS parameters"  # in files of some phones; the decoded pixels do not depend on it
ORIENTATION_TAG = 0x0112  # of EXIF
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
FLIP_CODES = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # EXIF orientation -> code of cv2.flip, applied after transposing


def decode(content: bytes) -> np.ndarray:
    """Decode an image as RGB uint8 [H, W, 3], rotated by its EXIF orientation.

    JPEGs are decoded by libjpeg-turbo through simplejpeg: it gives the same pixels as OpenCV at the same speed, and
    reports damage. Raises ValueError with the reason if the content is damaged or not an image.
    """
    if content.startswith(JPEG):
        return _apply_orientation(_decode_jpeg(content), _jpeg_orientation(content))
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        image = None
    if image is None:
        raise ValueError("it is damaged or not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def load_image(path: str) -> np.ndarray:
    """Read an image file as RGB uint8 [H, W, 3], rotated by its EXIF orientation.

    Raises UserError if the file is missing, damaged or not an image.
    """
    try:
        content = Path(path).read_bytes()  # cv2.imread does not read every path on every system
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror or error}") from None
    try:
        return decode(content)
    except ValueError as error:
        raise UserError(f"image {path} cannot be decoded ({len(content)} bytes): {error}") from None


def exif_orientation(image: "Image.Image") -> int:
    """Return the EXIF orientation of an opened image, 1 if it has none. XMP is ignored, as in OpenCV."""
    from PIL import Image  # installed with Paddle

    exif = Image.Exif()
    exif.load(image.info.get("exif", b""))
    return exif.get(ORIENTATION_TAG, 1)


def _decode_jpeg(content: bytes) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError as error:
        if not str(error).startswith(HARMLESS_WARNING):
            raise
    return simplejpeg.decode_jpeg(content, "RGB", strict=False)


def _jpeg_orientation(content: bytes) -> int:
    if EXIF not in content[: 1 << 17]:  # the EXIF segment is among the first ones, which have at most 64 KiB
        return 1
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return exif_orientation(image)
    except Exception:  # Pillow raises many types of errors for damaged EXIF data; the pixels are intact
        return 1


def _apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in TRANSPOSED:
        image = cv2.transpose(image)
    return cv2.flip(image, FLIP_CODES[orientation]) if orientation in FLIP_CODES else image
