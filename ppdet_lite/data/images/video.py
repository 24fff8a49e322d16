"""The frames of a video file, or of a camera."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.files import SUFFIXES

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # what is damaged is told once, by `Video`

CAMERA = re.compile(r"camera:(\d+)")
SHORT_BY = 2.0  # frames by which a whole video may end before its header says: the times of some are rounded


class Frame(NamedTuple):
    """One frame."""

    index: int
    time: float  # seconds since the first one
    pixels: np.ndarray  # RGB uint8 [H, W, 3]


def is_video(source: str | Path) -> bool:
    """Whether a source is to be read as frames: `camera:0`, or a file that is no image by its name."""
    path = Path(source)
    return CAMERA.fullmatch(str(source)) is not None or (path.is_file() and path.suffix.lower() not in SUFFIXES)


class Video:
    """A video file or, as `camera:0`, a camera that is read from; OpenCV decodes, and turns what was filmed upright.

    fps: frames per second as the file says; None of a camera, whose frames are taken as fast as they are asked for,
        and of a file that says nothing usable.
    total: the number of frames that a file's header gives, None where it gives none.

    Raises UserError for what cannot be opened, or has no frame that can be decoded.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        camera = CAMERA.fullmatch(self.source)
        self.is_camera, self._seen, self._end = camera is not None, 0, 0.0
        self._capture = cv2.VideoCapture(int(camera[1])) if camera else cv2.VideoCapture(self.source, cv2.CAP_FFMPEG)
        self._first = self._read()
        if self._first is None:
            self._capture.release()
            if camera:
                raise UserError(f"{self.source}: no such camera, or another program has it; correct the number")
            raise UserError(
                f"{self.source}: no video that OpenCV can read: empty, damaged, or of another kind; "
                f"images are known by their names, {', '.join(SUFFIXES)}"
            )
        fps, total = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.fps = fps if 0 < fps <= 1000 and not camera else None  # NaN is not either
        self.total = int(total) if total > 0 and not camera else None

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order, once."""
        pixels, began = self._first, time.monotonic()
        self._first = None
        while pixels is not None:
            self._end = self._time(began)
            yield Frame(self._seen, self._end, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
            self._seen += 1
            pixels = self._read()

    @property
    def broken_off(self) -> str | None:
        """After all frames that could be read: what is missing, None where a file was read to its end."""
        if self.is_camera:
            return f"{self.source} gives no more frames after {self._seen}"
        if self.total is None or self.fps is None or self._seen >= self.total:
            return None
        missing = self.total - (self._end * self.fps + 1)  # by time: of an uneven video the number is an estimate
        return f"{self.source} is damaged after {self._seen} of {self.total} frames" if missing > SHORT_BY else None

    def close(self) -> None:
        """Let the file or the camera go."""
        self._capture.release()

    def _read(self) -> np.ndarray | None:
        return self._capture.read()[1]

    def _time(self, began: float) -> float:
        if self.is_camera:
            return time.monotonic() - began
        return max(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, self._end)
