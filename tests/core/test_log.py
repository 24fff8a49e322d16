"""Logging, and the format of a remaining time."""

import logging
import math
import re

import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import configure, format_eta, get_logger


@pytest.fixture(autouse=True)
def logger():
    """The package's logger as in a new process, restored afterwards."""
    root = logging.getLogger("ppdet_lite")
    before = (root.handlers[:], root.level, root.propagate)
    root.handlers[:], root.propagate = [], True
    yield root
    root.handlers[:], root.level, root.propagate = before


def test_setup_writes_short_lines_once(tmp_path, capsys, logger):
    for _ in range(2):  # again: no second handler
        configure(file=tmp_path / "run" / "log.txt")
    get_logger().info("one")
    get_logger().warning("two %d", 2)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"\d\d:\d\d:\d\d", "T", line) for line in lines] == ["T INFO one", "T WARNING two 2"]
    assert (tmp_path / "run" / "log.txt").read_text().splitlines() == lines


def test_a_name_that_is_not_utf8_is_logged(tmp_path, capsys, logger):
    configure(file=tmp_path / "log.txt")
    get_logger().info("caf\udce9.png")
    printed = capsys.readouterr()
    assert printed.out.endswith("INFO caf\\udce9.png\n") and not printed.err
    assert (tmp_path / "log.txt").read_text().endswith("INFO caf\\udce9.png\n")


def test_other_ranks_only_warn(tmp_path, capsys):
    configure(rank=1, file=tmp_path / "log.txt")
    get_logger().info("one")
    get_logger().warning("two")
    assert capsys.readouterr().out.endswith("WARNING two\n")
    assert not (tmp_path / "log.txt").exists()


def test_an_unwritable_log_file_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"log\.txt: the log cannot be written"):
        configure(file=tmp_path / "file" / "log.txt")


def test_without_setup_the_logger_prints_unless_an_application_logs(capsys, monkeypatch, logger):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    get_logger().info("one")
    get_logger().info("two")
    assert len(capsys.readouterr().out.splitlines()) == 2
    logger.handlers.clear()
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    assert get_logger().handlers == []


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
