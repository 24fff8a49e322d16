"""JPEGs decoded strictly: OpenCV's pixels where the file is good, a complaint where it is not."""

import itertools
import struct

import cv2
import numpy as np
import pytest

from ppdet_lite.data.images.decoding import decode


def picture(height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 0)


def encoded(image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".jpg", image, list(options))[1].tobytes()


def of_opencv(content: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def with_exif(content: bytes, orientation: int, order: str) -> bytes:
    """A JPEG with an orientation tag, in big- or little-endian EXIF."""
    start = {">": b"MM\x00\x2a", "<": b"II\x2a\x00"}[order]
    tiff = start + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\x00\x00" + tiff
    return content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]


SAMPLINGS = [getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("411", "420", "422", "440", "444")]


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 130)])
def test_pixels_are_those_of_opencv(size):
    for sampling, progressive, restarts in itertools.product(SAMPLINGS, (0, 1), (0, 2)):
        options = {
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR: sampling,
            cv2.IMWRITE_JPEG_PROGRESSIVE: progressive,
            cv2.IMWRITE_JPEG_RST_INTERVAL: restarts,
        }
        content = encoded(picture(*size), *itertools.chain(*options.items()))
        np.testing.assert_array_equal(decode(content), of_opencv(content))


def test_grey_and_cmyk_jpegs(tmp_path):
    from PIL import Image

    grey = encoded(picture(20, 30)[..., 0])
    np.testing.assert_array_equal(decode(grey), of_opencv(grey))
    assert (decode(grey)[..., 0] == decode(grey)[..., 2]).all()
    four = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    Image.fromarray(four, "CMYK").save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    np.testing.assert_array_equal(decode(content), of_opencv(content))


@pytest.mark.parametrize("order", [">", "<"])
@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 are defined
def test_orientations_are_those_of_opencv(orientation, order):
    content = with_exif(encoded(picture(24, 40)), orientation, order)
    found = decode(content)
    assert found.shape == ((40, 24, 3) if orientation in (5, 6, 7, 8) else (24, 40, 3))
    np.testing.assert_array_equal(found, of_opencv(content))


def test_damaged_exif_does_not_matter():
    content = encoded(picture(24, 40))
    segment = b"Exif\x00\x00MM\x00\x2a\xff\xff\xff\xff"
    odd = content[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + content[2:]
    np.testing.assert_array_equal(decode(odd), decode(content))


@pytest.mark.parametrize("progressive", [0, 1])
def test_damage_in_the_middle_is_told(progressive, capfd):
    content = bytearray(encoded(picture(96, 128), cv2.IMWRITE_JPEG_PROGRESSIVE, progressive))
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    content[middle + 64 : middle + 66] = b"\xff\xd9"
    assert of_opencv(bytes(content)).shape == (96, 128, 3)  # which takes it, and complains on stderr
    capfd.readouterr()
    with pytest.raises(ValueError, match="Corrupt JPEG data"):
        decode(bytes(content))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"II*\0" + bytes(100), b"BM" + bytes(60), b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_what_is_no_image_is_told_once(content, capfd):
    with pytest.raises(ValueError, match="it is damaged or not an image"):
        decode(content)
    assert capfd.readouterr().err == ""


def test_a_complaint_that_concerns_no_pixel():
    """Some phones write a last coefficient of 0 into the header of a sequential scan."""
    content = bytearray(encoded(picture(24, 40)))
    scan = content.index(b"\xff\xda")
    content[scan + 2 + int.from_bytes(content[scan + 2 : scan + 4], "big") - 2] = 0
    np.testing.assert_array_equal(decode(bytes(content)), of_opencv(bytes(content)))


def test_bytes_after_the_picture_are_no_damage():
    content = encoded(picture(24, 40))
    for more in (content + b"of a camera", content[:-2] + b"\x12\x34" + content[-2:]):
        np.testing.assert_array_equal(decode(more), decode(content))
