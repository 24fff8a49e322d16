"""Color jitter against hand-computed pixels and a slow loop."""

import colorsys

import numpy as np
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.loading.color_jitter import ColorJitter, shift_hue
from tests.tiny_run import QUICKSTART

PIXELS = np.array([[[10, 100, 200], [0, 0, 0], [255, 255, 255]]], np.uint8)  # 1x3


class Always:
    """A generator that always returns the same fraction of the range."""

    def __init__(self, part: float) -> None:
        self.part = part

    def uniform(self, low: float, high: float, count: int) -> np.ndarray:
        return np.full(count, low + (high - low) * self.part)


def test_brightness_by_hand():
    assert ColorJitter(brightness=0.5)(PIXELS, Always(1.0)).tolist() == [[[15, 150, 255], [0, 0, 0], [255] * 3]]
    assert ColorJitter(brightness=0.5)(PIXELS, Always(0.0)).tolist() == [[[5, 50, 100], [0, 0, 0], [128] * 3]]


def test_contrast_by_hand():
    """The grays are 0.299 R + 0.587 G + 0.114 B = 84, 0 and 255; their mean is 113."""
    darker = ColorJitter(contrast=0.5)(PIXELS, Always(0.0))
    assert darker.tolist() == [[[62, 106, 156], [56] * 3, [184] * 3]]  # halfway to 113, halves to the even number
    assert ColorJitter(contrast=0.5)(PIXELS, Always(1.0)).tolist() == [[[0, 94, 244], [0, 0, 0], [255] * 3]]


def test_saturation_by_hand():
    assert ColorJitter(saturation=1.0)(PIXELS, Always(0.0)).tolist() == [[[84] * 3, [0] * 3, [255] * 3]]
    assert ColorJitter(saturation=1.0)(PIXELS, Always(1.0)).tolist() == [[[0, 116, 255], [0] * 3, [255] * 3]]


def test_hue_turns_as_in_a_slow_loop():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    for turn in (-0.5, -0.2, 0.0, 0.1, 0.4):
        expected = np.empty(image.shape)
        for y, x in np.ndindex(9, 11):
            h, s, v = colorsys.rgb_to_hsv(*(image[y, x] / 255))
            expected[y, x] = np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v)) * 255
        gaps = np.abs(shift_hue(image, turn) - expected)
        assert gaps.max() < 12 and gaps.mean() < 1.5  # a step of 1/256 in hue is 6 levels of a channel


def test_red_becomes_green_becomes_blue():
    red = np.array([[[200, 0, 0]]], np.uint8)
    green, blue = shift_hue(red, 1 / 3), shift_hue(red, -1 / 3)
    assert np.abs(green.astype(int) - [0, 200, 0]).max() < 6 and np.abs(blue.astype(int) - [0, 0, 200]).max() < 6


def test_all_of_it_is_in_order_and_leaves_the_image_alone():
    image = np.random.default_rng(1).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    before = image.copy()
    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.7, hue=0.1)
    changed = jitter(image, Always(0.9))
    assert changed.shape == image.shape and changed.dtype == np.uint8 and np.array_equal(image, before)
    one_by_one = image
    for key in ("brightness", "contrast", "saturation", "hue"):
        one_by_one = ColorJitter(**{key: getattr(jitter, key)})(one_by_one, Always(0.9))
    assert np.array_equal(changed, one_by_one)
    assert np.array_equal(ColorJitter()(image, Always(0.9)), image)


def test_draws_span_the_range_and_depend_on_the_generator_alone():
    image = np.full((1, 1, 3), 100, np.uint8)
    draws = [int(ColorJitter(brightness=0.5)(image, np.random.default_rng(i))[0, 0, 0]) for i in range(200)]
    assert draws[7] == int(ColorJitter(brightness=0.5)(image, np.random.default_rng(7))[0, 0, 0])
    assert 50 <= min(draws) < 55 and 145 < max(draws) <= 150 and 90 < np.mean(draws) < 110


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{hue: 0.6}", "color_jitter.hue: expected at most 0.5, got 0.6"),
        ("{brightness: 1.5}", "color_jitter.brightness: expected at most 1, got 1.5"),
        ("{contrast: -1}", "color_jitter.contrast: expected at least 0, got -1"),
        ("{color: 1}", "color_jitter.color: unknown key of ColorJitter"),
    ],
)
def test_a_config_is_checked(value, message):
    with pytest.raises(UserError, match=f"command line: data.augment.{message}"):
        load_config(QUICKSTART, [f"data.augment.color_jitter={value}"])
