"""The VisualDL record of a run: one file with one continuous curve, however often the run is resumed."""

from pathlib import Path

import numpy as np
import pytest
from visualdl import LogReader

from ppdet_lite.training.visualdl_log import VisualDLLog

PIXELS = np.full((4, 6, 3), 200, np.uint8)


def write(folder: Path, start: int, iterations: range, value: float = 0.0) -> None:
    log = VisualDLLog(folder, start)
    for iteration in iterations:
        log.scalars("train", iteration, {"lr": value})
        log.image("val/7", iteration, PIXELS)
    log.close()


def curve(folder: Path) -> list[tuple[int, float]]:
    (file,) = folder.iterdir()
    return [
        (point.id, round(point.value, 3)) for point in LogReader(file_path=str(file)).get_data("scalar", "train/lr")
    ]


def test_a_resumed_run_continues_its_curve(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 4))
    write(tmp_path, 3, range(4, 6), 0.5)
    assert curve(tmp_path) == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 0.5), (5, 0.5)]
    (file,) = tmp_path.iterdir()
    images = LogReader(file_path=str(file)).get_data("image", "val/7")
    assert [image.id for image in images] == [1, 2, 3, 4, 5]


def test_an_earlier_checkpoint_drops_what_came_after_it(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 6))
    write(tmp_path, 2, range(3, 5), 0.5)
    assert curve(tmp_path) == [(1, 0.0), (2, 0.0), (3, 0.5), (4, 0.5)]


def test_a_finished_run_keeps_its_record(tmp_path: Path) -> None:
    write(tmp_path, 0, range(1, 3))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    VisualDLLog(tmp_path, 2).close()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_that_writes_nothing_leaves_no_record(tmp_path: Path) -> None:
    VisualDLLog(tmp_path / "vdl").close()
    assert list(tmp_path.iterdir()) == []


def test_records_of_several_files_and_an_incomplete_one(tmp_path: Path) -> None:
    """As versions before wrote them: a file for each resume. The last record was interrupted."""
    write(tmp_path, 0, range(1, 4))
    (file,) = tmp_path.iterdir()
    first, second = tmp_path / "vdlrecords.0000000001.log", tmp_path / "vdlrecords.0000000002.log"
    file.rename(first)
    write(tmp_path / "other", 2, range(3, 5), 0.25)
    (other,) = (tmp_path / "other").iterdir()
    second.write_bytes(other.read_bytes()[:-5])
    other.unlink()
    (tmp_path / "other").rmdir()
    write(tmp_path, 4, range(5, 6), 0.5)
    assert curve(tmp_path) == [(1, 0.0), (2, 0.0), (3, 0.25), (4, 0.25), (5, 0.5)]


@pytest.mark.parametrize("tail", [bytes(64), b"\x04" + bytes(7) + b"\xff" * 4], ids=["zeros", "no record"])
def test_a_file_with_a_damaged_end_is_continued(tmp_path: Path, tail: bytes) -> None:
    """As a crash of the machine may leave it."""
    write(tmp_path, 0, range(1, 4))
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + tail)
    write(tmp_path, 3, range(4, 5), 0.5)
    assert curve(tmp_path) == [(1, 0.0), (2, 0.0), (3, 0.0), (4, 0.5)]
