"""Reads the frames of a video file or a camera."""

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

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # `Video` reports damage itself

CAMERA = re.compile(r"camera:(\d+)")
MISSING_TOLERANCE = 2.0  # frames that an intact video may be shorter than its header says: some times are rounded


class Frame(NamedTuple):
    """One frame of a video."""

    index: int
    time: float  # seconds since the first frame
    pixels: np.ndarray  # RGB uint8 [H, W, 3]


def is_video(source: str | Path) -> bool:
    """Return whether a source is a camera, such as `camera:0`, or a file whose suffix is not that of an image."""
    path = Path(source)
    return CAMERA.fullmatch(str(source)) is not None or (path.is_file() and path.suffix.lower() not in SUFFIXES)


class Video:
    """An open video file or, as `camera:0`, a camera. OpenCV decodes the frames and applies the rotation of a file.

    fps: frames per second from the header of the file; None if it has no usable value, and for a camera, whose frames
        are read as fast as they are requested.
    total: the number of frames from the header of the file, None if it has none.

    Raises UserError if the source cannot be opened or its first frame cannot be decoded.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        camera = CAMERA.fullmatch(self.source)
        self.is_camera, self._count, self._end = camera is not None, 0, 0.0
        self._capture = cv2.VideoCapture(int(camera[1])) if camera else cv2.VideoCapture(self.source, cv2.CAP_FFMPEG)
        self._first = self._read()
        if self._first is None:
            self._capture.release()
            if camera:
                raise UserError(f"{self.source}: no such camera, or another program uses it; correct the number")
            raise UserError(
                f"{self.source}: not a video that OpenCV can read: it is empty, damaged or of an unsupported format; "
                f"the suffixes of images are {', '.join(SUFFIXES)}"
            )
        fps, total = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.fps = fps if 0 < fps <= 1000 and not camera else None  # false for NaN too
        self.total = int(total) if total > 0 and not camera else None

    def frames(self) -> Iterator[Frame]:
        """Yield the frames in order, once."""
        pixels, start = self._first, time.monotonic()
        self._first = None
        while pixels is not None:
            self._end = self._time(start)
            yield Frame(self._count, self._end, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
            self._count += 1
            pixels = self._read()

    @property
    def missing_frames_message(self) -> str | None:
        """Return a message on missing frames after `frames` has ended, None if a file was read to its end."""
        if self.is_camera:
            return f"{self.source} gives no more frames after {self._count}"
        if self.total is None or self.fps is None or self._count >= self.total:
            return None
        missing = self.total - (self._end * self.fps + 1)  # from times: total is an estimate if the rate varies
        if missing <= MISSING_TOLERANCE:
            return None
        return f"{self.source} is damaged after {self._count} of {self.total} frames"

    def close(self) -> None:
        """Release the file or the camera."""
        self._capture.release()

    def _read(self) -> np.ndarray | None:
        return self._capture.read()[1]

    def _time(self, start: float) -> float:
        if self.is_camera:
            return time.monotonic() - start
        return max(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, self._end)
