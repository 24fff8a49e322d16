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
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.images.files import SUFFIXES

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # `Video` reports damage itself

STILL_IMAGES = (".heic", ".heif", ".avif")  # which FFmpeg reads as videos: of a tiled image, one tile
TEXT_CODECS = (b"ansi", b"bint", b"xbin", b"idf ")  # with which FFmpeg renders text and binary files
CAPTURE_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"  # environment variable with FFmpeg's options for the next video
ISO_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # the first box of MP4 and QuickTime files
MATROSKA, SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # ids of EBML elements

CAMERA = re.compile(r"camera:(\d+)")
MISSING_TOLERANCE = 2.0  # frames that an intact video may be shorter than its header says: some times are rounded


class Frame(NamedTuple):
    """One frame of a video."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    time: float  # seconds since the first frame
    pixels: np.ndarray  # RGB uint8 [H, W, 3]


def is_video(source: str | Path) -> bool:
    """Return whether a source is a camera, such as `camera:0`, or a file whose suffix is not that of an image."""
    if CAMERA.fullmatch(str(source)) is not None:
        return True
    path = Path(source)
    return path.is_file() and path.suffix.lower() not in (*SUFFIXES, *STILL_IMAGES)


class Video:
    """An open video file or, as `camera:0`, a camera. OpenCV decodes the frames and applies the rotation of a file.

    fps: frames per second from the header of the file; None if it has no usable value, and for a camera, whose frames
        are read as fast as they are requested.
    total: the number of frames from the header of the file, None if it has none. It is an estimate from the duration,
        which may be that of the sound, except for MP4, QuickTime and AVI files.

    Raises UserError if the source cannot be opened or its first frame cannot be decoded.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)
        try:
            self.source.encode()
        except UnicodeEncodeError:  # OpenCV 5.0 ends the process
            raise UserError(f"{self.source}: the name is not UTF-8, which OpenCV requires; rename the file") from None
        camera = CAMERA.fullmatch(self.source)
        self.is_camera, self._count, self._end = camera is not None, 0, 0.0
        self._capture = cv2.VideoCapture(int(camera[1])) if camera else cv2.VideoCapture(self.source, cv2.CAP_FFMPEG)
        self._first = self._read()
        codec = (int(self._capture.get(cv2.CAP_PROP_FOURCC)) & 0xFFFFFFFF).to_bytes(4, "little")
        if self._first is None or codec in TEXT_CODECS:
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

    def check_end(self) -> str | None:
        """Return a message on missing frames after `frames` has ended, None unless the file is damaged.

        Logs a warning if the file ends earlier than its header says, in a format in which that may have other reasons.
        """
        if self.is_camera:
            return f"{self.source} gives no more frames after {self._count}"
        if self.total is None or self.fps is None or self._count >= self.total:
            return None
        missing = self.total - (self._end * self.fps + 1)  # from times: total is an estimate if the rate varies
        if missing <= MISSING_TOLERANCE or (is_damaged := self._is_damaged()) is False:
            return None
        if is_damaged:
            return f"{self.source} is damaged after {self._count} of {self.total} frames"
        get_logger().warning(
            "%s ends after %d of %d frames that its duration implies: its sound is longer, or it is damaged",
            self.source,
            self._count,
            self.total,
        )
        return None

    def _is_damaged(self) -> bool | None:
        """Return whether a file that ends early is cut off or has frames that cannot be decoded; None if unknown.

        The frames that an edit list of an MP4 hides are not missing.
        """
        if not os.path.isfile(self.source):  # a URL
            return None
        with open(self.source, "rb") as file:
            head = file.read(1 << 20)
        # fragmented files contain mvex and no number of frames
        if self.total is not None and head[4:8] in ISO_BOXES and b"mvex" not in head:
            return self._count_all_frames() < self.total - MISSING_TOLERANCE
        if head.startswith(MATROSKA):
            return _matroska_size(head) > os.path.getsize(self.source)
        return True if head.startswith(b"RIFF") else None  # AVI

    def _count_all_frames(self) -> int:
        """Decode the file again, also the frames that its edit list hides."""
        options = os.environ.get(CAPTURE_OPTIONS)
        os.environ[CAPTURE_OPTIONS] = "ignore_editlist;1"
        capture = cv2.VideoCapture(self.source, cv2.CAP_FFMPEG)
        if options is None:
            del os.environ[CAPTURE_OPTIONS]
        else:
            os.environ[CAPTURE_OPTIONS] = options
        count = 0
        while capture.grab():
            count += 1
        capture.release()
        return count

    def close(self) -> None:
        """Release the file or the camera."""
        self._capture.release()

    def _read(self) -> np.ndarray | None:
        return self._capture.read()[1]

    def _time(self, start: float) -> float:
        if self.is_camera:
            return time.monotonic() - start
        return max(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, self._end)


def _matroska_size(head: bytes) -> int:
    """Return the size of a Matroska or WebM file according to its header, 0 if it has none.

    The size of an element is an integer of 1 to 8 bytes, in whose first byte the number of leading zeros gives that of
    further bytes; if all its bits are 1, the size is unknown.
    """
    start = head.find(SEGMENT) + len(SEGMENT)
    if start < len(SEGMENT) or start == len(head):
        return 0
    length = 9 - head[start].bit_length()
    marker = 1 << 7 * length
    size = int.from_bytes(head[start : start + length], "big") - marker
    return 0 if size == marker - 1 else start + length + size
