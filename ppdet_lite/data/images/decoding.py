"""Converts image files and Pillow images to RGB uint8.

Decoding is strict: a damaged JPEG is an error, where OpenCV would fill the missing part with gray.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import simplejpeg

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger

if TYPE_CHECKING:
    from PIL import Image

# `decode` reports damage itself. 0 is silent; OpenCV 5 moved the function.
(cv2.setLogLevel if hasattr(cv2, "setLogLevel") else cv2.utils.logging.setLogLevel)(0)

JPEG, EXIF = b"\xff\xd8\xff", b"Exif\x00\x00"
TIFF, GIF = (b"II", b"MM"), b"GIF8"
ANIMATION = b"acTL", b"ANIM"  # names of chunks near the start of animated PNG and WebP files
DARK = 1 << 14  # 16-bit pixels below it (of 12- or 14-bit cameras) are less than a quarter of the full range
HARMLESS_WARNING = "Invalid SOS parameters"  # in files of some phones; the decoded pixels do not depend on it
ORIENTATION_TAG = 0x0112  # of EXIF
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
FLIP_CODES = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # EXIF orientation -> code of cv2.flip, applied after transposing


def decode(content: bytes, name: str = "image") -> np.ndarray:
    """Decode an image file as RGB uint8 [H, W, 3], rotated by its EXIF orientation; of several images, the first.

    JPEGs are decoded by libjpeg-turbo through simplejpeg: it gives the same pixels as OpenCV at the same speed, and
    reports damage. 16-bit pixels keep their upper 8 bits; alpha is ignored. Logs a warning with the name of the image,
    once per process, if that makes the image dark or if the file contains several images. Raises ValueError with the
    reason if the content is damaged, not an image, or has pixels of another type.
    """
    if content.startswith(JPEG):
        return _apply_orientation(_decode_jpeg(content), _jpeg_orientation(content))
    buffer = np.frombuffer(content, np.uint8)
    image = _decode_by_opencv(buffer, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    if image is None and content.startswith(TIFF):
        image = _decode_by_opencv(buffer, cv2.IMREAD_UNCHANGED)  # gray pixels that are not uint8 or uint16
    if image is None:
        raise ValueError(_unreadable(content))
    rgb = cv2.cvtColor(_to_uint8(image, name), cv2.COLOR_BGR2RGB)
    if content.startswith((*TIFF, GIF)) or any(chunk in content[: 1 << 16] for chunk in ANIMATION):
        pillow = _open_by_pillow(content, name)
        if pillow is not None and pillow.mode == "RGBA" and content.startswith(TIFF):
            return from_pillow(pillow, name)  # OpenCV multiplies the colors of a TIFF by its alpha channel
    return rgb


def from_pillow(image: "Image.Image", name: str = "image") -> np.ndarray:
    """Convert a Pillow image to RGB uint8 [H, W, 3] as `decode` does with its file, rotated by its EXIF orientation.

    Raises ValueError with the reason if its file is damaged or its pixels are of another type.
    """
    try:
        image.load()
        if image.mode.startswith("I;16"):
            pixels = np.repeat(np.asarray(image)[..., None], 3, axis=2)
        else:
            pixels = np.asarray(image if image.mode in ("I", "F") else image.convert("RGB"))
    except Exception as error:  # Pillow raises many types of errors for damaged files
        raise ValueError(str(error)) from None
    return _apply_orientation(_to_uint8(pixels, name), exif_orientation(image))


def load_image(path: str) -> np.ndarray:
    """Read an image file as RGB uint8 [H, W, 3], rotated by its EXIF orientation.

    Logs the warnings of `decode`. Raises UserError if the file is missing, or for the reasons of `decode`.
    """
    try:
        content = Path(path).read_bytes()  # cv2.imread does not read every path on every system
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror or error}") from None
    try:
        return decode(content, path)
    except ValueError as error:
        raise UserError(f"image {path} cannot be decoded ({len(content)} bytes): {error}") from None


def exif_orientation(image: "Image.Image") -> int:
    """Return the EXIF orientation of an opened image, 1 if it has none. XMP is ignored, as in OpenCV."""
    from PIL import Image  # installed with Paddle

    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        return exif.get(ORIENTATION_TAG, 1)
    except Exception:  # Pillow raises many types of errors for damaged EXIF data; the pixels are intact
        return 1


def _decode_jpeg(content: bytes) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(content, "RGB", strict=True)
    except ValueError as error:
        if not str(error).startswith(HARMLESS_WARNING):
            raise
    return simplejpeg.decode_jpeg(content, "RGB", strict=False)


def _decode_by_opencv(buffer: np.ndarray, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(buffer, flags)
    except cv2.error:
        return None


def _unreadable(content: bytes) -> str:
    """Return why a file cannot be decoded."""
    if content[4:8] == b"ftyp":  # HEIC, AVIF, MP4 and others
        brand = content[8:12].decode("ascii", "replace").strip()
        return f"it is damaged or its format, {brand}, is not supported; convert it to JPEG or PNG"
    return "it is damaged or not an image"


def _to_uint8(image: np.ndarray, name: str) -> np.ndarray:
    """Return the upper 8 bits of 16-bit pixels, 8-bit pixels unchanged. Raises ValueError for other types."""
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "u" or image.dtype.itemsize != 2:
        raise ValueError(f"its pixels are {image.dtype}; convert them to 8 or 16 bits (unsigned integers)")
    if 0 < (largest := int(image.max(initial=0))) < DARK:
        message = f"{name}: 16-bit, but its largest value is {largest} of 65535, so that its 8-bit pixels are at most"
        _warn_once(f"{message} {largest >> 8} of 255; scale 12-bit images to the full range", "dark")
    return (image >> 8).astype(np.uint8)


def _open_by_pillow(content: bytes, name: str) -> "Image.Image | None":
    """Open an image, logging a warning if there are several; None if Pillow cannot read what OpenCV could."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(content))
        count = getattr(image, "n_frames", 1)
    except Exception:  # Pillow raises many types of errors
        return None
    if count > 1:
        message = f"{name}: contains {count} images (pages or frames); only the first is used"
        _warn_once(message, "several images")
    return image


_warned: set[str] = set()  # kinds of warnings that were logged


def _warn_once(message: str, kind: str) -> None:
    if kind not in _warned:
        _warned.add(kind)
        get_logger().warning("%s (other images with this problem are not reported)", message)


def _jpeg_orientation(content: bytes) -> int:
    if EXIF not in content[: 1 << 17]:  # the EXIF segment is among the first ones, which have at most 64 KiB
        return 1
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as image:
            return exif_orientation(image)
    except Exception:  # Pillow raises many types of errors; the pixels are decoded without it
        return 1


def _apply_orientation(image: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in TRANSPOSED:
        image = cv2.transpose(image)
    return cv2.flip(image, FLIP_CODES[orientation]) if orientation in FLIP_CODES else image
