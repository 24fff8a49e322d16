"""Inference on videos: the annotated video, the lines of JSON, and the files after an interruption."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import RunFailed, Stopped, UserError
from ppdet_lite.data.images import video as video_module
from ppdet_lite.data.images.drawing import draw_detections
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation import infer_video as module
from ppdet_lite.evaluation.infer_video import infer_video
from tests.data.test_video import Camera
from tests.tiny_run import Oracle, describe_tiny_run, tiny_checkpoint
from tests.videos import cut, read_video, slow_down, trim, write_video

ROOT = Path(__file__).resolve().parents[2]
NAMES, IDS = ["猫", "dog"], [40, 7]
BOX = [10, 20, 30, 40]
SEEN = [([BOX], [0.75], [0]), ([BOX, BOX], [0.5, 0.25], [1, 0]), ([], [], [])]


def oracle(count: int) -> Detector:
    """A detector with one, two (one of low score) and no detections in turn."""
    answers = [SEEN[i % 3] for i in range(count)]
    return Detector.from_trained(TrainedModel(Oracle(answers), NAMES, IDS, Preprocess(32, 64), "a test"))


def lines_of(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_video(tmp_path: Path, batch_size: int) -> None:
    detector = oracle(6)
    infer_video(detector, write_video(tmp_path / "a.mp4"), tmp_path / "out" / "deep", batch_size)
    assert names_in(tmp_path / "out" / "deep") == ["a.jsonl", "a.mp4"]
    assert [shape[0] for shape, *_ in detector.network.model.calls] == ([1] * 6 if batch_size == 1 else [4, 2])
    lines = lines_of(tmp_path / "out/deep/a.jsonl")
    assert [(line["frame"], line["time"]) for line in lines] == [(i, pytest.approx(0.08 * i)) for i in range(6)]
    assert [len(line["detections"]) for line in lines] == [1, 1, 0, 1, 1, 0]
    assert lines[0]["detections"] == [{"class": "猫", "category_id": 40, "score": 0.75, "bbox": BOX}]
    frames, fps = read_video(tmp_path / "out/deep/a.mp4")
    assert len(frames) == 6 and fps == 12.5
    for i, frame in enumerate(frames):
        boxes, scores, classes = (np.array(part) for part in SEEN[i % 3])
        good = scores >= 0.5
        plain = np.full((48, 64, 3), 30 * i, np.uint8)
        boxes, classes = boxes.reshape(-1, 4)[good], classes[good].astype(int)
        drawn = draw_detections(plain, boxes, classes, scores[good], NAMES)[..., ::-1]
        assert np.abs(frame.astype(float) - drawn).mean() < 12  # the codec's
    assert np.abs(frames[3].astype(float) - 90).max() > 60 > np.abs(frames[2].astype(float) - 60).max()


def test_an_odd_size_keeps_its_last_column(tmp_path: Path) -> None:
    write_video(tmp_path / "a.avi", 2, (48, 64), codec="MJPG")

    class Odd(video_module.Video):
        def frames(self):
            for frame in super().frames():
                yield frame._replace(pixels=np.ascontiguousarray(frame.pixels[:47, :63]))

    module_video, module.Video = module.Video, Odd
    try:
        infer_video(oracle(2), tmp_path / "a.avi", tmp_path / "out")
    finally:
        module.Video = module_video
    frames, _ = read_video(tmp_path / "out/a.mp4")
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 2


def test_a_damaged_end_is_reported_after_writing(tmp_path: Path) -> None:
    cut(write_video(tmp_path / "a.mkv", 20), 0.6)
    with pytest.raises(RunFailed, match=r"a\.mkv is damaged after \d+ of 20 frames; the detections before that are"):
        infer_video(oracle(20), tmp_path / "a.mkv", tmp_path / "out")
    assert len(lines_of(tmp_path / "out/a.jsonl")) == len(read_video(tmp_path / "out/a.mp4")[0]) > 0


def test_a_trimmed_video_is_not_damaged(tmp_path: Path) -> None:
    infer_video(oracle(6), trim(write_video(tmp_path / "a.mp4", 12), 0.5, 0.5), tmp_path / "out")
    assert len(lines_of(tmp_path / "out/a.jsonl")) == len(read_video(tmp_path / "out/a.mp4")[0]) == 6


@pytest.mark.parametrize("factor", [1, 10])
def test_a_varying_frame_rate_is_warned_about(
    tmp_path: Path, factor: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    infer_video(oracle(12), slow_down(write_video(tmp_path / "a.mp4", 12), 6, factor), tmp_path / "out")
    times = [line["time"] for line in lines_of(tmp_path / "out/a.jsonl")]
    assert times[:7] == pytest.approx([0.08 * i for i in range(7)]) and times[11] == pytest.approx(0.48 + 0.4 * factor)
    warnings = [message for message in caplog.messages if "frame rate varies" in message]
    assert len(warnings) == (factor > 1)


def test_a_camera_is_recorded_at_its_measured_frame_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 0.0, 0.5, 1.0])  # two beginnings, then the frames of Camera(1)
    monkeypatch.setattr(video_module.cv2, "VideoCapture", Camera)
    monkeypatch.setattr(video_module.time, "monotonic", lambda: next(clock, 99.0))
    with pytest.raises(RunFailed, match="camera:1 gives no more frames after 3"):
        infer_video(oracle(3), "camera:1", tmp_path / "out", batch_size=2)
    assert names_in(tmp_path / "out") == ["camera1.jsonl", "camera1.mp4"]
    assert len(lines_of(tmp_path / "out/camera1.jsonl")) == 3
    monkeypatch.undo()
    frames, fps = read_video(tmp_path / "out/camera1.mp4")
    assert len(frames) == 3 and fps == pytest.approx(2.0)


def test_stopping_leaves_a_video_that_plays_and_whole_lines(tmp_path: Path) -> None:
    detector = oracle(6)
    network = detector.network

    def stopping(*arguments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(network.model.calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return network(*arguments)

    detector.network = stopping
    with pytest.raises(Stopped) as stopped:
        infer_video(detector, write_video(tmp_path / "a.mp4"), tmp_path / "out")
    assert stopped.value.code == 130 and names_in(tmp_path / "out") == ["a.jsonl", "a.mp4"]
    assert len(lines_of(tmp_path / "out/a.jsonl")) == len(read_video(tmp_path / "out/a.mp4")[0]) == 3


def test_ctrl_c_in_the_tool(tmp_path: Path) -> None:
    """In a separate process, at any time."""
    run = describe_tiny_run(tiny_checkpoint(tmp_path, ["dog", "cat"], [9, 5]))
    write_video(tmp_path / "long.mp4", 2000)
    command = [sys.executable, str(ROOT / "tools/infer.py"), "--model", str(run), "--input", str(tmp_path / "long.mp4")]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    written, deadline = tmp_path / "out/long.jsonl", time.monotonic() + 300
    while not (written.exists() and written.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert (process.returncode, told) == (130, b"")
    count = len(lines_of(written))
    assert 0 < count < 2000 and len(read_video(tmp_path / "out/long.mp4")[0]) == count
    assert names_in(tmp_path / "out") == ["long.jsonl", "long.mp4"]


def test_refused_input_leaves_no_files(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "file").touch()
    for source, output, score, message in (
        ("empty.mp4", "out", 0.5, r"empty\.mp4: not a video that OpenCV can read"),
        ("a.mp4", "out", 0.01, r"score 0\.01 is not between"),
        ("a.mp4", ".", 0.5, "contains the video itself; choose another folder"),
        ("a.mp4", "file", 0.5, r"file/a: cannot be written: File exists"),
    ):
        with pytest.raises(UserError, match=message):
            infer_video(oracle(6), tmp_path / source, tmp_path / output, score=score)
    assert names_in(tmp_path) == ["a.mp4", "empty.mp4", "file"]


def test_a_full_disk_keeps_earlier_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.mp4")

    def full(*_: object) -> list:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "require_space", full)
    with pytest.raises(UserError, match=r"out/a: cannot be written: No space left on device; free space"):
        infer_video(oracle(6), tmp_path / "a.mp4", tmp_path / "out")
    assert names_in(tmp_path / "out") == ["a.jsonl"]  # the video cannot be trusted
