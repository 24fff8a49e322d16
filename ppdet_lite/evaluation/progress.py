"""Detections on their way: put into the order of their images, told how many there are."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ppdet_lite.core.log import format_eta, get_logger
from ppdet_lite.deployment.detect import ImageDetections

TELL_EVERY = 10.0  # seconds between two lines about the progress

T = TypeVar("T")


def in_order(found: Iterable[ImageDetections], image_ids: Iterable[int]) -> Iterator[ImageDetections]:
    """Put detections, of each of the images once, into the order of the images."""
    early: dict[int, ImageDetections] = {}
    stream = iter(found)
    for image_id in image_ids:
        while image_id not in early:
            image = next(stream)
            early[image.image_id] = image
        yield early.pop(image_id)


def tell_progress(found: Iterable[T], total: int | None, unit: str = "image") -> Iterator[T]:
    """Pass detections on, logging now and then how many of `total` images are done and how long the rest takes.

    total: None where it is not known.
    """
    began = told = time.perf_counter()
    for count, image in enumerate(found, start=1):
        yield image
        now = time.perf_counter()
        if now - told >= TELL_EVERY:
            told, rate = now, count / (now - began)
            rest = "" if total is None else f"/{total}  eta {format_eta((total - count) / rate)}"
            get_logger().info("%s %d%s  %.2f %ss/s", unit, count, rest, rate, unit)
