"""The progress of the training loop, as lines and as a bar."""

import io
import logging
import math
import re

import numpy as np
import pytest

from ppdet_lite.core.log import configure
from ppdet_lite.training import progress as progress_module
from ppdet_lite.training.progress import Progress, SmoothedMeters
from ppdet_lite.training.sinks import StepRecord


@pytest.fixture(autouse=True)
def logger():
    """The package's logger as a fresh process has it, put back afterwards."""
    root = logging.getLogger("ppdet_lite")
    before = (root.handlers[:], root.level, root.propagate)
    root.handlers[:], root.propagate = [], True
    yield root
    root.handlers[:], root.level, root.propagate = before


def test_meters_look_back_one_window(monkeypatch):
    monkeypatch.setattr(progress_module, "WINDOW", 3)
    meters = SmoothedMeters()
    for value in (100.0, 1.0, 2.0, 6.0):
        meters.update({"loss": value})
    meters.update({"late": np.float32(4)})
    assert meters.medians() == {"loss": 2.0, "late": 4.0}
    meters.update({"loss": math.nan})
    assert math.isnan(meters.medians()["loss"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


def record(iteration, losses):
    return StepRecord(iteration, 0, 0.01, losses, {}, seconds=0.5, data_seconds=0.125, memory_mb=[1280])


def run(progress, first, last):
    for iteration in range(first, last + 1):
        progress.step(record(iteration, {"a": 0.25, "b": 1.0}))


def test_the_log_file_has_lines_beside_a_bar(tmp_path):
    configure(file=tmp_path / "train.log")
    terminal = Terminal()
    progress = Progress(total=12, log_every=4, stream=terminal)
    run(progress, 1, 12)
    progress.close()
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split("/")[0][9:] for line in lines] == [f"INFO iter {i:2}" for i in (4, 5, 8, 12)]
    assert "loss 1.25" in lines[-1] and "INFO" not in terminal.getvalue()


def test_plain_progress():
    stream = io.StringIO()
    progress = Progress(total=113, start=40, log_every=20, stream=stream)
    run(progress, 41, 113)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == [
        "iter  45",
        "iter  60",
        "iter  80",
        "iter 100",
        "iter 113",
    ]
    assert lines[1] == "iter  60/113  eta 0:00:26  lr 0.01  loss 1.25  a 0.25  b 1  0.500 s/iter (data 0.125)  1.25 GiB"


def test_plain_progress_goes_to_the_log(capsys):
    configure()
    run(Progress(total=20), 1, 20)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:4] for line in lines] == [["INFO", "iter", "5/20"], ["INFO", "iter", "20/20"]]


def test_a_diverged_loss_is_visible():
    stream = io.StringIO()
    progress = Progress(total=1, stream=stream)
    progress.step(record(1, {"a": math.nan}))
    assert "loss nan" in stream.getvalue()


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    progress = Progress(total=60, start=40, stream=stream)
    run(progress, 41, 60)
    progress.close()
    shown = re.split(r"[\r\n]+", stream.getvalue())
    assert any(line.startswith("40/60") for line in shown)
    assert any(line.startswith("60/60") and "loss 1.25" in line and "(data 0.125)" in line for line in shown)
