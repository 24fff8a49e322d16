"""Small videos for tests, and what they hold."""

import struct
from pathlib import Path

import cv2
import numpy as np


def write_video(
    path: Path, count: int = 6, size: tuple[int, int] = (48, 64), fps: float = 12.5, codec: str = "mp4v"
) -> Path:
    """Write frames of a size (h, w), each gray and 30 lighter than the one before."""
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


def trim(path: Path, start: float, length: float) -> Path:
    """Let the edit list of an MP4 written by `write_video` show another part, in fractions of the whole."""
    content = bytearray(path.read_bytes())
    duration, media_duration = (
        struct.unpack_from(">I", content, content.index(box) + 20)[0] for box in (b"mvhd", b"mdhd")
    )
    edit = round(length * duration), round(start * media_duration)
    struct.pack_into(">Ii", content, content.index(b"elst") + 12, *edit)
    path.write_bytes(content)
    return path


def slow_down(path: Path, count: int, factor: int) -> Path:
    """Show all but the first `count` frames of an MP4 written by `write_video` for a longer time."""
    content = bytearray(path.read_bytes())
    start = content.index(b"stts")
    _, _, total, ticks = struct.unpack_from(">IIII", content, start + 4)
    content[start + 4 : start + 20] = struct.pack(">IIIIII", 0, 2, count, ticks, total - count, ticks * factor)
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):  # the last of the file: no offset changes
        position = content.index(box) - 4
        struct.pack_into(">I", content, position, struct.unpack_from(">I", content, position)[0] + 8)
    path.write_bytes(content)
    return trim(path, 0, (count + (total - count) * factor) / total)


def lengthen(path: Path, factor: float) -> Path:
    """Multiply the duration in the header of a Matroska file, as a longer sound does."""
    content = bytearray(path.read_bytes())
    position = content.index(b"\x44\x89\x88") + 3
    struct.pack_into(">d", content, position, factor * struct.unpack_from(">d", content, position)[0])
    path.write_bytes(content)
    return path
