"""Colours changed at random, on uint8 RGB pixels."""

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from ppdet_lite.config.registry import register

Strength = Annotated[float, Field(ge=0, le=1)]


@register
@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue, one after the other in this order.

    brightness, contrast, saturation: v draws a factor evenly from 1 - v to 1 + v; 0 leaves it alone. The pixels are
        blended with black, with the image's mean grey and with their own grey (as in torchvision).
    hue: v turns the hue by up to v of its circle, either way.
    """

    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Change an image, RGB uint8 [H, W, 3], into a new one."""
        shifts = rng.uniform(-1, 1, 4) * (self.brightness, self.contrast, self.saturation, self.hue)
        brightness, contrast, saturation = (shifts[:3] + 1).tolist()
        if self.brightness:
            image = _blend(image, 0.0, brightness)
        if self.contrast:
            image = _blend(image, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean(), contrast)
        if self.saturation:
            grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, saturation, grey, 1 - saturation, 0)
        return turn_hue(image, shifts[3]) if self.hue else image


def turn_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue of RGB uint8 [H, W, 3] by a part of the circle, in steps of 1/256 (as Pillow has it)."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turn * 256) % 256)  # wraps around as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _blend(image: np.ndarray, other: float, factor: float) -> np.ndarray:
    """The image mixed with, or driven away from, one grey value."""
    values = np.arange(256) * factor + other * (1 - factor)
    return cv2.LUT(image, np.rint(values).clip(0, 255).astype(np.uint8))
