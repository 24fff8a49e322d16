"""Detection in a video or before a camera: an annotated video, and a line of JSON per frame."""

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
from ppdet_lite.evaluation.progress import tell_progress
from ppdet_lite.storage.files import require_space

CODEC = "mp4v"  # MPEG-4, part 2: every OpenCV has an encoder for it, and every player plays it
USUAL_FPS = 25.0  # of a video that does not say
MEASURED = 10  # frames after which the pace of a camera's is known


def infer_video(detector: Detector, source: str | Path, output: Path, batch_size: int = 1, score: float = 0.5) -> None:
    """Detect in the frames of a video file or, as `camera:0`, of a camera until it is told to stop.

    Writes NAME.mp4 below `output`, with the detections of at least `score` drawn, and NAME.jsonl, an object per frame:
    {frame, time, detections: [{class, category_id, score, bbox}]}, time in seconds, bbox [x1, y1, x2, y2] in pixels of
    the frame. The lines are written as they are found, the video appears when it is finished; both are whole, though
    shorter, when SIGINT or SIGTERM ends the run, which of a file then raises Stopped.

    batch_size: frames that the network takes at a time; of a camera it is 1.

    Raises UserError for what is no video, a score that cannot be honoured and an output that cannot be written, and
    RunFailed when all is written of a file that is damaged on the way, or of a camera that has gone.
    """
    require_score(detector, score)
    name = _name(source, output)
    with StopRequest() as stop, contextlib.closing(Video(source)) as video:
        began, count = time.monotonic(), 0
        try:
            output.mkdir(parents=True, exist_ok=True)
            with (output / f"{name}.jsonl").open("w", encoding="utf-8") as lines, _Film(output / name, video) as film:
                for frame, found in _found(detector, video, 1 if video.is_camera else batch_size, stop):
                    found, count = found.above(score), count + 1
                    said = {"frame": frame.index, "time": round(frame.time, 3)}
                    said["detections"] = as_records(detector, found)
                    lines.write(json.dumps(said, ensure_ascii=False, allow_nan=False) + "\n")
                    lines.flush()
                    drawn = found.boxes, found.classes, found.scores, detector.class_names
                    film.add(draw_detections(frame.pixels, *drawn), frame.time)
        except OSError as error:
            if error.errno is None:  # Paddle's own, such as CUDA's
                raise
            reason = f"cannot be written: {error.strerror}; free space or choose another output"
            raise UserError(f"{output / name}: {reason}") from error
        rate = count / (time.monotonic() - began)
        get_logger().info("%d frames, %.2f frames/s: %s.mp4 and %s.jsonl in %s", count, rate, name, name, output)
        if stop.is_made:
            if not video.is_camera:
                raise Stopped(f"stopped by {stop.signal.name}", EXIT_CODES[stop.signal])
        elif video.broken_off is not None:
            raise RunFailed(f"{video.broken_off}; what was found until then is written")


def _name(source: str | Path, output: Path) -> str:
    """What the files are to be called. Raises UserError where they could lie beside their source."""
    if (camera := CAMERA.fullmatch(str(source))) is not None:
        return f"camera{camera[1]}"
    if output.resolve() == Path(source).resolve().parent:
        raise UserError(f"output {output} is where the video is; choose another folder")
    return Path(source).stem


def _found(
    detector: Detector, video: Video, batch_size: int, stop: StopRequest
) -> Iterator[tuple[Frame, ImageDetections]]:
    """Each frame with what is found in it, until a request to stop."""

    def pairs() -> Iterator[tuple[Frame, ImageDetections]]:
        frames = video.frames()
        while not stop.is_made and (chosen := list(itertools.islice(frames, batch_size))):
            samples = [image_sample(frame.pixels, detector.preprocess, frame.index) for frame in chosen]
            yield from zip(chosen, detector.detect([collate(samples, detector.preprocess)]), strict=True)

    return tell_progress(pairs(), video.total, "frame")


class _Film:
    """The annotated video. It is written under a hidden name and gets its own in the end, however that comes.

    Of a video without a pace, as a camera's, the first frames wait until theirs is known.
    """

    def __init__(self, path: Path, video: Video) -> None:
        self._path = path.with_name(f"{path.name}.mp4")
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial.mp4")
        self._fps = video.fps if video.is_camera else video.fps or USUAL_FPS
        self._waiting: list[tuple[np.ndarray, float]] = []
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "_Film":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._write_waiting()
            if self._writer is not None:
                self._writer.release()
                require_space(self._path.parent)
                self._partial.replace(self._path)
        finally:
            self._partial.unlink(missing_ok=True)

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """Append a picture [H, W, 3] RGB of a time. Raises UserError for a size that the codec does not take."""
        height, width = picture.shape[:2]
        even = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)  # the codec cuts it off
        self._waiting.append((even[..., ::-1], seconds))
        if self._fps is not None or len(self._waiting) == MEASURED:
            self._write_waiting()

    def _write_waiting(self) -> None:
        if self._waiting and self._writer is None:
            self._writer = self._open(self._waiting)
        for picture, _ in self._waiting:
            self._writer.write(np.ascontiguousarray(picture))
        self._waiting = []

    def _open(self, pictures: list[tuple[np.ndarray, float]]) -> cv2.VideoWriter:
        if self._fps is None:
            seconds = pictures[-1][1] - pictures[0][1]
            self._fps = (len(pictures) - 1) / seconds if seconds > 0 else USUAL_FPS
        height, width = pictures[0][0].shape[:2]
        writer = cv2.VideoWriter(str(self._partial), cv2.VideoWriter_fourcc(*CODEC), self._fps, (width, height))
        if not writer.isOpened():
            self._waiting = []
            raise UserError(f"{self._path}: cannot be written as {width} x {height} pixels; choose a smaller video")
        return writer
