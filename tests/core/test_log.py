"""Log lines, metrics.jsonl and progress."""

import contextlib
import io
import json
import logging
import math
import re

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import (
    MetricsWriter,
    Progress,
    SmoothedMeters,
    format_eta,
    get_logger,
    read_metrics,
    setup,
)


@pytest.fixture(autouse=True)
def logger():
    """The package's logger as a fresh process has it, put back afterwards."""
    root = logging.getLogger("ppdet_lite")
    before = (root.handlers[:], root.level, root.propagate)
    root.handlers[:], root.propagate = [], True
    yield root
    root.handlers[:], root.level, root.propagate = before


def test_setup_writes_short_lines_once(tmp_path, capsys, logger):
    for _ in range(2):  # again: no second handler
        setup(file=tmp_path / "run" / "log.txt")
    get_logger().info("one")
    get_logger("data.coco").warning("two %d", 2)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d\d:\d\d:\d\d", "T", line) for line in lines] == ["T INFO one", "T WARNING two 2"]
    assert (tmp_path / "run" / "log.txt").read_text().splitlines() == lines
    assert get_logger("ppdet_lite.data.coco") is get_logger("data.coco")


def test_other_ranks_only_warn(tmp_path, capsys):
    setup(rank=1, file=tmp_path / "log.txt")
    get_logger().info("one")
    get_logger().warning("two")
    assert capsys.readouterr().out.endswith("WARNING two\n")
    assert not (tmp_path / "log.txt").exists()


def test_a_log_file_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"log\.txt: the log cannot be written"):
        setup(file=tmp_path / "file" / "log.txt")


def test_without_setup_the_logger_prints_unless_an_application_logs(capsys, monkeypatch, logger):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    get_logger().info("one")
    get_logger().info("two")
    assert len(capsys.readouterr().out.splitlines()) == 2
    logger.handlers.clear()
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    assert get_logger().handlers == []


def write_all(path, iterations, resume=None):
    writer = MetricsWriter(path, resume_iteration=resume)
    for iteration in iterations:
        writer.write(iteration, {"loss": iteration / 3, "lr": 0.01})
    writer.close()


def test_metrics_are_plain_json(tmp_path):
    writer = MetricsWriter(tmp_path / "run" / "metrics.jsonl")
    values = {
        "loss": np.float32(0.5),
        "bad": np.float64("nan"),
        "inf": -math.inf,
        "n": np.int64(3),
        "flag": np.bool_(True),
    }
    writer.write(20, {**values, "per_class": {"cat": [1.0, math.nan], 3: np.array(2)}})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()  # before it is closed: flushed
    assert json.loads(text, parse_constant=pytest.fail) == {
        "iteration": 20,
        "loss": 0.5,
        "bad": None,
        "inf": None,
        "n": 3,
        "flag": True,
        "per_class": {"cat": [1.0, None], "3": 2},
    }
    assert text.count("\n") == 1 and text.endswith("\n")
    writer.close()


@pytest.mark.parametrize("tail", [b"", b'{"iteration": 80, "lo', b"\xff\x00"], ids=["whole", "torn", "garbage"])
def test_a_resumed_file_equals_the_uninterrupted_one(tmp_path, tail):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write_all(whole, range(10, 130, 10))
    write_all(resumed, range(10, 80, 10))  # the last checkpoint was at 40
    resumed.write_bytes(resumed.read_bytes() + tail)
    assert [entry["iteration"] for entry in read_metrics(resumed)] == list(range(10, 80, 10))
    write_all(resumed, range(50, 130, 10), resume=40)
    assert resumed.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["resumed.jsonl", "whole.jsonl"]


def test_a_file_that_goes_on_loses_only_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_all(path, [10])
    path.write_bytes(path.read_bytes() + b'{"iter')
    write_all(path, [20])
    assert [entry["iteration"] for entry in read_metrics(path)] == [10, 20]


def test_a_foreign_line_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for line in ("no json", '{"loss": 1}', "[1]"):
        path.write_text('{"iteration": 1}\n' + line + "\n")
        with pytest.raises(UserError, match=r"metrics\.jsonl:2: no JSON object with an iteration"):
            MetricsWriter(path, resume_iteration=5)
    with pytest.raises(UserError, match=r"metrics\.jsonl/x: cannot be written"):
        MetricsWriter(path / "x")
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read: No such file"):
        read_metrics(tmp_path / "none.jsonl")
    path.write_text("no json\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: a line of it is no JSON"):
        read_metrics(path)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    writer = MetricsWriter(tmp_path / "metrics.jsonl")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(writer, "_file", full)
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
            writer.write(1, {})
        with contextlib.suppress(OSError):
            full.close()


def test_meters_look_back_one_window():
    meters = SmoothedMeters(window=3)
    for value in (100.0, 1.0, 2.0, 6.0):
        meters.update({"loss": value})
    meters.update({"late": np.float32(4)})
    assert meters.means() == {"loss": 3.0, "late": 4.0}
    assert meters.medians() == {"loss": 2.0, "late": 4.0}
    meters.update({"loss": math.nan})
    assert math.isnan(meters.medians()["loss"]) and math.isnan(meters.means()["loss"])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (59.6, "0:01:00"),
        (3725, "1:02:05"),
        (86399, "23:59:59"),
        (2 * 86400 + 11045, "2 d 3:04:05"),
        (math.nan, "--"),
        (math.inf, "--"),
        (-1, "--"),
    ],
)
def test_eta(seconds, text):
    assert format_eta(seconds) == text


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(progress, first, last):
    for iteration in range(first, last + 1):
        progress.update(iteration, {"a": 0.25, "b": 1.0}, lr=0.01, seconds=0.5, data_seconds=0.125)


def test_plain_progress():
    stream = io.StringIO()
    progress = Progress(total=113, start=40, log_every=20, stream=stream)
    run(progress, 41, 113)
    progress.write("saved")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert [line.split("/")[0] for line in lines] == [
        "iter  45",
        "iter  60",
        "iter  80",
        "iter 100",
        "iter 113",
        "saved",
    ]
    assert lines[1] == "iter  60/113  eta 0:00:26  lr 0.01  loss 1.25  a 0.25  b 1  0.500 s/iter (data 0.125)"


def test_plain_progress_goes_to_the_log(capsys):
    setup()
    run(Progress(total=20), 1, 20)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:4] for line in lines] == [["INFO", "iter", "5/20"], ["INFO", "iter", "20/20"]]


def test_a_diverged_loss_is_visible():
    stream = io.StringIO()
    progress = Progress(total=1, stream=stream)
    progress.update(1, {"a": math.nan}, 0.01, 0.5, 0.1)
    assert "loss nan" in stream.getvalue()


def test_a_terminal_gets_a_bar():
    stream = Terminal()
    progress = Progress(total=60, start=40, stream=stream)
    run(progress, 41, 60)
    progress.write("saved")
    progress.close()
    shown = re.split(r"[\r\n]+", stream.getvalue())
    assert any(line.startswith("40/60") for line in shown)
    assert any(line.startswith("60/60") and "loss 1.25" in line and "(data 0.125)" in line for line in shown)
    assert "saved" in shown
