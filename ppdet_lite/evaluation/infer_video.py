"""Detection in a video file or camera stream: an annotated video, and one line of JSON per frame."""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from ppdet_lite.core.errors import RunFailed, Stopped, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.core.stopping import EXIT_CODES, StopRequest
from ppdet_lite.data.images.drawing import draw_detections
from ppdet_lite.data.images.video import CAMERA, Frame, Video
from ppdet_lite.data.loading.transforms import collate, image_sample
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.infer import as_records, require_score
from ppdet_lite.evaluation.progress import log_progress
from ppdet_lite.storage.files import require_space, write_error

CODEC = "mp4v"  # MPEG-4 part 2, which every build of OpenCV can write and every player can read
DEFAULT_FPS = 25.0  # for a video that does not specify it
MEASURED_FRAMES = 10  # number of first frames from which the frame rate of a camera is measured


def infer_video(detector: Detector, source: str | Path, output: Path, batch_size: int = 1, score: float = 0.5) -> None:
    """Detect objects in the frames of a video file or, for `camera:0`, of a camera until the process is stopped.

    Writes NAME.mp4 into `output`, with detections of at least `score`, and NAME.jsonl, one object per frame:
    {frame, time, detections: [{class, category_id, score, bbox}]}, time in seconds, bbox [x1, y1, x2, y2] in pixels of
    the frame. Lines are written immediately; the video gets its name when it is complete. SIGINT or SIGTERM ends both
    files early but intact; for a video file, Stopped is then raised.

    batch_size: frames per batch; 1 for a camera.

    Raises UserError for a file that is not a video, a score below the model's own threshold, and an output that cannot
    be written. Raises RunFailed, after both files are written, if the video is damaged or the camera disconnected.
    """
    require_score(detector, score)
    name = _name(source, output)
    with StopRequest() as stop, contextlib.closing(Video(source)) as video:
        start, count, gap, end = time.monotonic(), 0, 0.0, 0.0
        fps = video.fps or DEFAULT_FPS
        try:
            output.mkdir(parents=True, exist_ok=True)
            jsonl = output / f"{name}.jsonl"
            with jsonl.open("w", encoding="utf-8") as lines, _VideoFile(output / name, video) as writer:
                for frame, result in _detect_frames(detector, video, 1 if video.is_camera else batch_size, stop):
                    result, count = result.above(score), count + 1
                    gap, end = max(gap, abs(frame.time - frame.index / fps)), frame.time
                    records = as_records(detector, result)
                    record = {"frame": frame.index, "time": round(frame.time, 3), "detections": records}
                    lines.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
                    lines.flush()
                    names = detector.class_names
                    image = draw_detections(frame.pixels, result.boxes, result.classes, result.scores, names)
                    writer.add(image, frame.time)
        except OSError as error:
            if error.errno is None:  # raised by Paddle, for example for a CUDA error
                raise
            raise write_error(output / name, error) from error
        rate = count / (time.monotonic() - start)
        get_logger().info("%d frames, %.2f frames/s: %s.mp4 and %s.jsonl in %s", count, rate, name, name, output)
        if not video.is_camera and end > 0 and gap > max(0.05 * end, 2 / fps):
            message = "%s.mp4 shows frames up to %.1f s early or late: the frame rate varies; %s.jsonl has their times"
            get_logger().warning(message, name, gap, name)
        if stop.is_requested:
            if not video.is_camera:
                raise Stopped(f"stopped by {stop.signal.name}", EXIT_CODES[stop.signal])
        elif (message := video.check_end()) is not None:
            raise RunFailed(f"{message}; the detections before that are written")


def _name(source: str | Path, output: Path) -> str:
    """Return the name of the output files without suffix. Raises UserError if the video is in the output folder."""
    if (camera := CAMERA.fullmatch(str(source))) is not None:
        return f"camera{camera[1]}"
    if output.resolve() == Path(source).resolve().parent:
        raise UserError(f"output {output} contains the video itself; choose another folder")
    return Path(source).stem


def _detect_frames(
    detector: Detector, video: Video, batch_size: int, stop: StopRequest
) -> Iterator[tuple[Frame, ImageDetections]]:
    """Yield each frame with its detections until the video ends or a stop is requested."""

    def pairs() -> Iterator[tuple[Frame, ImageDetections]]:
        frames = video.frames()
        while not stop.is_requested and (batch := list(itertools.islice(frames, batch_size))):
            samples = [image_sample(frame.pixels, detector.preprocess, frame.index) for frame in batch]
            yield from zip(batch, detector.detect([collate(samples, detector.preprocess)]), strict=True)

    return log_progress(pairs(), video.total, "frame")


class _VideoFile:
    """Writer of the annotated video, under a hidden name; the file is renamed on exit, also after an exception.

    For a camera without a frame rate, the first MEASURED_FRAMES are buffered to measure it.
    """

    def __init__(self, path: Path, video: Video) -> None:
        self._path = path.with_name(f"{path.name}.mp4")
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial.mp4")
        self._fps = video.fps if video.is_camera else video.fps or DEFAULT_FPS
        self._buffer: list[tuple[np.ndarray, float]] = []
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "_VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._write_buffer()
            if self._writer is not None:
                self._writer.release()
                require_space(self._path.parent)
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def add(self, image: np.ndarray, seconds: float) -> None:
        """Append an image [H, W, 3] RGB with its time. Raises UserError for a size that the codec does not support."""
        height, width = image.shape[:2]
        even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)  # codecs cut off odd ends
        self._buffer.append((even[..., ::-1], seconds))
        if self._fps is not None or len(self._buffer) == MEASURED_FRAMES:
            self._write_buffer()

    def _write_buffer(self) -> None:
        if self._buffer and self._writer is None:
            self._writer = self._open(self._buffer)
        for image, _ in self._buffer:
            self._writer.write(np.ascontiguousarray(image))
        self._buffer = []

    def _open(self, images: list[tuple[np.ndarray, float]]) -> cv2.VideoWriter:
        if self._fps is None:
            seconds = images[-1][1] - images[0][1]
            self._fps = (len(images) - 1) / seconds if seconds > 0 else DEFAULT_FPS
        height, width = images[0][0].shape[:2]
        writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter_fourcc(*CODEC), self._fps, (width, height))
        if not writer.isOpened():
            self._buffer = []
            raise UserError(f"{self._path}: cannot be written as {width} x {height} pixels; choose a smaller video")
        return writer
