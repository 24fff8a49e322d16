"""Random changes of color on uint8 RGB pixels."""

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field

from ppdet_lite.config.constrained_types import Fraction
from ppdet_lite.config.registry import register


@register
@dataclass(frozen=True)
class ColorJitter:
    """Randomly change brightness, contrast, saturation and hue, in this order.

    brightness, contrast, saturation: a value v draws a factor uniformly from [1 - v, 1 + v]; 0 disables the step. As
        in torchvision, pixels are blended with black, with the mean gray of the image, and with their own gray.
    hue: a value v shifts the hue by a fraction of the color circle drawn uniformly from [-v, v].
    """

    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return a changed copy of an image, RGB uint8 [H, W, 3]."""
        shifts = rng.uniform(-1, 1, 4) * (self.brightness, self.contrast, self.saturation, self.hue)
        brightness, contrast, saturation = (shifts[:3] + 1).tolist()
        if self.brightness:
            image = _blend(image, 0.0, brightness)
        if self.contrast:
            image = _blend(image, float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()), contrast)
        if self.saturation:
            gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, saturation, gray, 1 - saturation, 0)
        return shift_hue(image, shifts[3]) if self.hue else image


def shift_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Shift the hue of RGB uint8 [H, W, 3] by a fraction of the color circle, in steps of 1/256 as in Pillow."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(shift * 256) % 256)  # uint8 overflow wraps around, as the hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _blend(image: np.ndarray, gray: float, factor: float) -> np.ndarray:
    """Interpolate (factor below 1) or extrapolate (above 1) between one gray value and the image."""
    values = np.arange(256) * factor + gray * (1 - factor)
    return cv2.LUT(image, np.rint(values).clip(0, 255).astype(np.uint8))
