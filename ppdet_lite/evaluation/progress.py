"""Iterators over the results of images: restore their order, log progress."""

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ppdet_lite.core.log import format_eta, get_logger
from ppdet_lite.deployment.detect import ImageDetections

LOG_INTERVAL = 10.0  # seconds between two log lines

T = TypeVar("T")


def in_order(results: Iterable[ImageDetections], image_ids: Iterable[int]) -> Iterator[ImageDetections]:
    """Yield detections in the order of image_ids. `results` contains each image once, in any order."""
    waiting: dict[int, ImageDetections] = {}
    stream = iter(results)
    for image_id in image_ids:
        while image_id not in waiting:
            image = next(stream)
            waiting[image.image_id] = image
        yield waiting.pop(image_id)


def log_progress(results: Iterable[T], total: int | None, unit: str = "image") -> Iterator[T]:
    """Yield the results unchanged; log the number of finished images and the remaining time every LOG_INTERVAL.

    total: the number of images, None if unknown.
    """
    start = last_log = time.perf_counter()
    for count, image in enumerate(results, start=1):
        yield image
        now = time.perf_counter()
        if now - last_log >= LOG_INTERVAL:
            last_log, rate = now, count / (now - start)
            suffix = "" if total is None else f"/{total}  eta {format_eta((total - count) / rate)}"
            get_logger().info("%s %d%s  %.2f %ss/s", unit, count, suffix, rate, unit)
