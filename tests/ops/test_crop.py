"""Cropping and resizing against a slow loop and against OpenCV."""

import cv2
import numpy as np
import paddle
import pytest
from paddle.base import core

from ppdet_lite.ops.crop import crop_and_resize
from tests.tiny import slow_crop

HEIGHT, WIDTH = 37, 53
BOXES = {
    "inside": [4.3, 5.1, 30.9, 20.2],
    "smaller than a pixel": [7.2, 9.6, 7.5, 9.9],
    "no extent": [7.2, 9.6, 7.2, 9.6],
    "at the upper left corner": [0, 0, 20, 11],
    "at the lower right corner": [31.5, 20, WIDTH, HEIGHT],
    "the whole image": [0, 0, WIDTH, HEIGHT],
    "over every edge": [-6, -3.5, WIDTH + 9, HEIGHT + 4],
    "outside": [WIDTH + 3, -20, WIDTH + 30, -5],
    "mirrored": [40, 3, 22, 30],
    "one row": [3, 12, 50, 13],
}


def noise(channels: int = 3, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((channels, height, width)).astype(np.float32)


def crop(image: np.ndarray, boxes: list[list[float]], size: int) -> np.ndarray:
    return crop_and_resize(paddle.to_tensor(image), paddle.to_tensor(boxes, dtype="float32"), size).numpy()


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("size", [1, 8, 21])
def test_equals_a_slow_loop(name: str, size: int) -> None:
    found = crop(noise(), [BOXES[name]], size)
    assert found.shape == (1, 3, size, size) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], slow_crop(noise(), np.float32(BOXES[name]), size), atol=1e-5)


def test_each_box_is_cropped_independently() -> None:
    together = crop(noise(), list(BOXES.values()), 9)
    for found, box in zip(together, BOXES.values(), strict=True):
        np.testing.assert_array_equal(found, crop(noise(), [box], 9)[0])


@pytest.mark.parametrize(("height", "width"), [(30, 90), (90, 30), (224, 224), (500, 700), (1, 5), (1, 1)])
def test_the_whole_image_is_resized_as_opencv_does(height: int, width: int) -> None:
    image = noise(3, height, width)
    expected = cv2.resize(image.transpose(1, 2, 0), (64, 64), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
    np.testing.assert_allclose(crop(image, [[0, 0, width, height]], 64)[0], expected, atol=1e-5)


def test_padding_of_the_image_is_not_cropped() -> None:
    """Pixels below and to the right of `extent` must not affect the result."""
    padded = noise()
    padded[:, 30:] = padded[:, :, 41:] = 1e6
    boxes = paddle.to_tensor([box for name, box in BOXES.items() if name != "no extent"], dtype="float32")
    found = crop_and_resize(paddle.to_tensor(padded), boxes, 9, paddle.to_tensor([30.0, 41.0])).numpy()
    expected = [slow_crop(noise()[:, :30, :41], box, 9) for box in boxes.numpy()]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_box_of_the_patches_size_is_copied() -> None:
    np.testing.assert_allclose(crop(noise(), [[11, 7, 27, 23]], 16)[0], noise()[:, 7:23, 11:27], atol=1e-6)


def test_a_mirrored_box_gives_the_mirrored_patch() -> None:
    plain, mirrored = crop(noise(), [[22, 3, 40, 30], [40, 3, 22, 30]], 12)
    np.testing.assert_allclose(mirrored, plain[:, :, ::-1], atol=1e-6)


def test_is_exact_in_a_large_image() -> None:
    """Where float32 positions would be 1e-4 pixels off."""
    image = np.random.default_rng(1).standard_normal((1, 40, 4000)).astype(np.float32)
    box = [3000.3, 3.0, 3050.7, 30.0]
    np.testing.assert_allclose(crop(image, [box], 16)[0], slow_crop(image, np.float32(box), 16), atol=2e-6)


def test_memory_does_not_depend_on_the_size_of_the_image() -> None:
    """4000 x 3000 pixels, 144 MB, whose conversion to float64 took 288 MB; the two patches have 6 kB."""
    image = paddle.zeros([3, 3000, 4000])
    boxes = paddle.to_tensor([[0.0, 0.0, 4000.0, 3000.0], [3000.0, 9.0, 2000.0, 2900.0]])
    before = core.host_memory_stat_current_value("Allocated", 0)
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    assert not crop_and_resize(image, boxes, 16).any()
    assert core.host_memory_stat_peak_value("Allocated", 0) - before < 1e6


def test_no_gradient() -> None:
    image = paddle.to_tensor(noise(), stop_gradient=False)
    assert crop_and_resize(image, paddle.to_tensor([[1.0, 2, 9, 8]]), 4).stop_gradient
