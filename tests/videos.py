"""Small videos for tests, and what they hold."""

from pathlib import Path

import cv2
import numpy as np


def write_video(
    path: Path, count: int = 6, size: tuple[int, int] = (48, 64), fps: float = 12.5, codec: str = "mp4v"
) -> Path:
    """Write frames of a size (h, w), each grey and 30 lighter than the one before."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, size[::-1])
    assert writer.isOpened()
    for i in range(count):
        writer.write(np.full((*size, 3), 30 * i % 256, np.uint8))
    writer.release()
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """All frames, BGR, and the frames per second, by OpenCV alone."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (frame := capture.read()[1]) is not None:
        frames.append(frame)
    return frames, capture.get(cv2.CAP_PROP_FPS)


def cut(path: Path, share: float) -> Path:
    """Cut a file off after a share of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
