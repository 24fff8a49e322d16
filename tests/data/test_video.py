"""The frames of video files and of a stand-in for a camera."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images import video as module
from ppdet_lite.data.images.video import Video, is_video
from tests.videos import cut, lengthen, trim, write_video


def test_frames_come_in_order_with_their_times(tmp_path: Path) -> None:
    video = Video(write_video(tmp_path / "a.mp4"))
    assert (video.fps, video.total, video.is_camera) == (12.5, 6, False)
    frames = list(video.frames())
    assert [frame.index for frame in frames] == list(range(6))
    assert [frame.time for frame in frames] == pytest.approx([0.08 * i for i in range(6)])
    for i, frame in enumerate(frames):
        assert frame.pixels.shape == (48, 64, 3) and frame.pixels.dtype == np.uint8
        assert abs(frame.pixels.mean() - 30 * i) < 3
    assert video.check_end() is None and list(video.frames()) == []


def test_colors_are_rgb(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    writer.write(np.full((48, 64, 3), (0, 0, 250), np.uint8))  # OpenCV's red
    writer.release()
    (frame,) = Video(tmp_path / "a.avi").frames()
    assert frame.pixels[..., 0].min() > 230 and frame.pixels[..., 1:].max() < 20


@pytest.mark.parametrize(("name", "codec"), [("a.avi", "MJPG"), ("a.mkv", "mp4v")])
def test_a_file_that_was_cut_off_is_told_of_after_its_frames(tmp_path: Path, name: str, codec: str) -> None:
    video = Video(cut(write_video(tmp_path / name, 20, codec=codec), 0.6))
    count = len(list(video.frames()))
    assert 0 < count < 18 and video.check_end() == f"{tmp_path / name} is damaged after {count} of 20 frames"


@pytest.mark.parametrize("content", [b"", b"some text\n" * 50, b"\0" * 2000])
def test_what_is_no_video(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mp4: not a video that OpenCV can read: it is empty, damaged or of"):
        Video(tmp_path / "a.mp4")
    cut(write_video(tmp_path / "b.mp4"), 0.7)  # without its index, which comes last
    with pytest.raises(UserError, match=r"b\.mp4: not a video that OpenCV can read"):
        Video(tmp_path / "b.mp4")
    write_video(tmp_path / "c.mp4", 0)
    with pytest.raises(UserError, match=r"c\.mp4: not a video that OpenCV can read"):
        Video(tmp_path / "c.mp4")
    assert capfd.readouterr() == ("", "")  # FFmpeg has its own words for it


@pytest.mark.parametrize("start", [0, 0.25, 0.5])
@pytest.mark.parametrize("name", ["a.mp4", "a.mov"])
def test_frames_hidden_by_an_edit_list_are_no_damage(tmp_path: Path, name: str, start: float) -> None:
    video = Video(trim(write_video(tmp_path / name, 12), start, 0.5))
    levels = [frame.pixels.mean() for frame in video.frames()]
    assert levels == pytest.approx([30 * i % 256 for i in range(round(12 * start), round(12 * start) + 6)], abs=12)
    assert video.total == 12 and video.check_end() is None


def test_undecodable_frames_of_a_trimmed_video_are_damage(tmp_path: Path) -> None:
    path = trim(write_video(tmp_path / "a.mp4", 12), 0, 0.5)
    content = bytearray(path.read_bytes())
    start, end = content.index(b"mdat") + 4, content.index(b"moov") - 4
    start += (end - start) // 8
    content[start:end] = bytes(end - start)
    path.write_bytes(content)
    video = Video(path)
    count = len(list(video.frames()))
    assert count < 6 and video.check_end() == f"{path} is damaged after {count} of 12 frames"


def test_a_sound_longer_than_the_picture_is_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The number of frames of a Matroska file is an estimate from its duration."""
    video = Video(lengthen(write_video(tmp_path / "a.mkv", 10), 4))
    assert (len(list(video.frames())), video.total, video.check_end()) == (10, 40, None)
    assert caplog.messages == []


def test_missing_frames_without_proof_are_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_video(tmp_path / "a.flv", 40, codec="FLV1")
    video = Video(cut(path, 0.5))
    count = len(list(video.frames()))
    assert count < 38 and video.check_end() is None
    assert caplog.messages == [
        f"{path} ends after {count} of 40 frames that its duration implies: its sound is longer, or it is damaged"
    ]


def test_a_text_file_is_no_video(tmp_path: Path) -> None:
    """FFmpeg renders it as text on a terminal."""
    (tmp_path / "images.txt").write_text("\n".join(f"images/{i}.jpg" for i in range(2000)))
    with pytest.raises(UserError, match=r"images\.txt: not a video that OpenCV can read"):
        Video(tmp_path / "images.txt")


class Camera:
    """A stand-in for cv2.VideoCapture: three frames, half a second apart."""

    def __init__(self, number: int) -> None:
        self.left = 3 if number == 1 else 0

    def read(self):
        self.left -= 1
        return self.left >= 0, np.zeros((48, 64, 3), np.uint8) if self.left >= 0 else None

    def get(self, _key: int) -> float:
        return 30.0

    def release(self) -> None:
        pass


def test_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.0, 10.5, 11.0])
    monkeypatch.setattr(module.cv2, "VideoCapture", Camera)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    video = Video("camera:1")
    assert (video.is_camera, video.fps, video.total) == (True, None, None)
    assert [frame.time for frame in video.frames()] == [0.0, 0.5, 1.0]
    assert video.check_end() == "camera:1 gives no more frames after 3"
    with pytest.raises(UserError, match=r"^camera:0: no such camera, or another program uses it"):
        Video("camera:0")


def test_which_sources_are_videos(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.MOV", "c.jpg", "notes", "d.HEIC"):
        (tmp_path / name).touch()
    names = ("a.mp4", "b.MOV", "c.jpg", "notes", "", "absent.mp4", "d.HEIC")  # HEIC: FFmpeg reads a tile of the image
    assert [is_video(tmp_path / name) for name in names] == [True, True, False, True, False, False, False]
    assert is_video("camera:0") and is_video(Path("camera:12"))
    assert not is_video("camera:x") and not is_video("camera")


def test_a_name_that_is_not_utf8_is_refused() -> None:
    """OpenCV 5.0 ends the process at such a name."""
    with pytest.raises(UserError, match="the name is not UTF-8, which OpenCV requires; rename the file"):
        Video("caf\udce9.mp4")
