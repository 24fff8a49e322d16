"""JPEGs decoded strictly: OpenCV's pixels where the file is good, a complaint where it is not."""

import io
import itertools
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images import decoding
from ppdet_lite.data.images.decoding import decode, from_pillow, load_image


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


def test_gray_and_cmyk_jpegs(tmp_path):
    gray = encoded(picture(20, 30)[..., 0])
    np.testing.assert_array_equal(decode(gray), of_opencv(gray))
    assert (decode(gray)[..., 0] == decode(gray)[..., 2]).all()
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
    np.testing.assert_allclose(
        from_pillow(Image.open(io.BytesIO(odd))).astype(int), decode(content).astype(int), atol=1
    )


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


@pytest.fixture
def warnings(caplog, monkeypatch):
    """Return the messages of warnings, in a process without earlier ones."""
    monkeypatch.setattr(decoding, "_warned", set())
    return lambda: caplog.messages


def smooth():
    return cv2.resize(picture(6, 8), (64, 48), interpolation=cv2.INTER_CUBIC)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("bits", "is_dark"), [(10, True), (12, True), (14, True), (15, False), (16, False)])
def test_16_bit_files_keep_their_upper_bits_and_dark_ones_are_warned_about(suffix, channels, bits, is_dark, warnings):
    deep = np.random.default_rng(0).integers(0, 1 << bits, (20, 30, channels), dtype=np.uint16)
    deep[0, 0] = (1 << bits) - 1
    content = cv2.imencode(suffix, deep)[1].tobytes()
    expected = np.broadcast_to((deep >> 8)[..., ::-1], (20, 30, 3))
    np.testing.assert_array_equal(decode(content, "a file"), expected)
    decode(content, "another file")
    start = f"a file: 16-bit, but its largest value is {(1 << bits) - 1} of 65535, so that its 8-bit pixels are at most"
    assert len(warnings()) == is_dark and all(message.startswith(start) for message in warnings())


def test_what_is_not_dark(warnings):
    for pixels in (np.zeros((4, 4), np.uint16), np.full((4, 4), 20, np.uint8)):
        decode(cv2.imencode(".png", pixels)[1].tobytes())
    assert warnings() == []


@pytest.mark.parametrize("kind", ["float32", "float64", "int32", "int16", "int8"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_pixels_that_are_not_unsigned_integers_are_refused_as_such(kind, shape, tmp_path):
    (tmp_path / "a.tif").write_bytes(cv2.imencode(".tif", np.ones(shape, kind))[1].tobytes())
    reason = rf"a\.tif cannot be decoded .*: its pixels are {kind}; convert them to 8 or 16 bits \(unsigned integers\)"
    with pytest.raises(UserError, match=reason):
        load_image(str(tmp_path / "a.tif"))


def test_another_format_is_not_called_damaged():
    with pytest.raises(ValueError, match="damaged or its format, heic, is not supported; convert it to JPEG or PNG"):
        decode(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + bytes(100))


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP", "GIF"])
def test_of_several_images_the_first_is_used_with_a_warning(form, warnings):
    first, second = (Image.fromarray(np.full((20, 30, 3), level, np.uint8)) for level in (50, 200))
    options = {"lossless": True} if form == "WEBP" else {}
    assert abs(decode(saved(first, form, **options)).astype(int) - 50).max() <= 2 and warnings() == []
    try:
        found = decode(saved(first, form, save_all=True, append_images=[second], **options), "a file")
    except ValueError:  # OpenCV 4
        pytest.skip(f"this OpenCV does not read animated {form}")
    assert abs(found.astype(int) - 50).max() <= 2
    assert [message.split(" (")[0] for message in warnings()] == ["a file: contains 2 images"]


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB"),
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_pillow_images_are_converted_like_their_files(form, mode):
    image = Image.fromarray(smooth())
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif mode in ("LA", "RGBA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(np.full((48, 64), 100, np.uint8)))
    else:
        image = image.convert(mode)
    content = saved(image, form, **({"lossless": True} if form == "WEBP" else {}))
    found, expected = from_pillow(Image.open(io.BytesIO(content))), decode(content)
    assert found.dtype == np.uint8 and found.shape == (48, 64, 3)
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1 if mode in ("CMYK", "YCbCr") else 0)
    if mode not in ("1", "P", "L", "LA", "I;16"):
        assert np.abs(found.astype(int) - smooth()).mean() < 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_of_all_formats_are_those_of_pillow(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(Image.fromarray(smooth()), form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert expected.shape == ((64, 48, 3) if orientation > 4 else (48, 64, 3))
    np.testing.assert_array_equal(decode(content), expected)
    np.testing.assert_array_equal(from_pillow(Image.open(io.BytesIO(content))), expected)


@pytest.mark.parametrize(("mode", "kind"), [("I", "int32"), ("F", "float32")])
def test_pillow_images_of_other_numbers_are_refused(mode, kind):
    with pytest.raises(ValueError, match=f"its pixels are {kind}; convert them to 8 or 16 bits"):
        from_pillow(Image.new(mode, (4, 3), 1))


def test_a_damaged_pillow_image_is_refused():
    content = saved(Image.fromarray(smooth()), "PNG")
    with pytest.raises(ValueError, match="truncated"):
        from_pillow(Image.open(io.BytesIO(content[: len(content) // 2])))
