"""metrics.jsonl: plain, whole lines; what goes on after a crash or on resuming."""

import contextlib
import json
import math

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.training.metrics_file import MetricsFile, read_metrics


def write_all(path, iterations, resume=None):
    writer = MetricsFile(path, resume_iteration=resume)
    for iteration in iterations:
        writer.write(iteration, {"loss": iteration / 3, "lr": 0.01})
    writer.close()


def test_metrics_are_plain_json(tmp_path):
    writer = MetricsFile(tmp_path / "run" / "metrics.jsonl")
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
        with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a JSON object with an iteration"):
            MetricsFile(path, resume_iteration=5)
    with pytest.raises(UserError, match=r"metrics\.jsonl/x: cannot be written"):
        MetricsFile(path / "x")
    with pytest.raises(UserError, match=r"none\.jsonl: cannot be read: No such file"):
        read_metrics(tmp_path / "none.jsonl")
    path.write_text("no json\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: a line is not JSON"):
        read_metrics(path)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    writer = MetricsFile(tmp_path / "metrics.jsonl")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(writer, "_file", full)
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written: No space left on device"):
            writer.write(1, {})
        with contextlib.suppress(OSError):
            full.close()
