"""Padding of images, and the size that an exported graph receives."""

import numpy as np
import pytest

from ppdet_lite.deployment.graph_inputs import graph_inputs, pad_images


@pytest.mark.parametrize(
    ("size", "padded"),
    [((64, 96), (64, 96)), ((33, 64), (64, 64)), ((1, 1), (32, 32)), ((65, 31), (96, 32)), ((0, 5), (32, 32))],
)
def test_padding_is_zero_on_the_right_and_at_the_bottom(size: tuple[int, int], padded: tuple[int, int]) -> None:
    images = np.ones((2, 3, *size), np.float32)
    found = pad_images(images, 32)
    assert found.shape == (2, 3, *padded) and found.sum() == images.sum()
    np.testing.assert_array_equal(found[:, :, : size[0], : size[1]], images)
    assert size != padded or found is images


@pytest.mark.parametrize(
    ("image_size", "original", "scale", "expected"),
    [
        (427, 3456, 640 / 5184, 426.66667),
        (426, 3452, 640 / 5184, 426.17284),
        (214, 427, 0.5, 213.501),  # 213.5, which Python and OpenCV round to even and a graph would round up
        (212, 425, 0.5, 212.499),
        (1, 1, 0.1, 0.1),
        (0, 0, 1, 0),
        (100, 100, 1, 100),
        (50, 1000, 1, 50.499),  # whatever the original size, the network's is kept
    ],
)
def test_the_fraction_of_a_pixel(image_size: int, original: int, scale: float, expected: float) -> None:
    sizes, originals, scales = (np.full((1, 2), value, np.float32) for value in (image_size, original, scale))
    inputs = graph_inputs(np.zeros((1, 3, 8, 8), np.float64), sizes, scales, originals, None)
    assert [(name, value.dtype.name) for name, value in inputs.items()] == [
        (name, "float32") for name in ("image", "im_shape", "scale_factor")
    ]
    np.testing.assert_allclose(inputs["im_shape"], [[expected] * 2], rtol=1e-7)
    assert graph_inputs(np.zeros((1, 3, 8, 8)), sizes, scales, None, None)["im_shape"].tolist() == sizes.tolist()
