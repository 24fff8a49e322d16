"""A disk that is full for one writer of a run: one line, the last checkpoint loads, and the run goes on later."""

import builtins
import io
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import configure, get_logger, log_error_to_file
from ppdet_lite.storage.checkpoint import latest_checkpoint, load_checkpoint
from ppdet_lite.training.loop import train
from tests.tiny_run import QUICKSTART, small_shapes

OF_EVALUATION = ["bbox.json", "metrics.json"]
WRITERS = ["config.yml", "classes.json", "train.log", "metrics.jsonl", "vdlrecords", *OF_EVALUATION]
WRITERS += ["model.safetensors", "optimizer.safetensors", "checkpoint.json"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    every = {"length": 2, "checkpoint_every": 1, "evaluate_every": 1}
    train_set = [*(f"train.{key}={count} iterations" for key, count in every.items()), "train.log_every=1"]
    shapes = small_shapes(tmp_path_factory.mktemp("shapes"), train=2, val=1)
    return load_config(QUICKSTART, [*shapes, *train_set, "train.preview_images=0", "data.loader.threads=0"])


@pytest.fixture(scope="module")
def begun(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that came to its first checkpoint and stopped when the second one was due."""
    run = tmp_path_factory.mktemp("run")
    train(config, run)
    shutil.rmtree(run / "checkpoints/iter_00000002")
    return run


@pytest.fixture
def disk_full_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """From now on what a file of such a name is written goes to /dev/full, which refuses it as a full disk does."""
    real, refused = io.open, []

    def open_(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        named = any(re.search(rf"/\.?{re.escape(name)}(?![a-z])", str(file)) for name in refused)
        is_refused = set(mode) & set("wax") and named
        return real("/dev/full" if is_refused else file, mode, *rest, **options)

    monkeypatch.setattr(io, "open", open_)  # what pathlib calls
    monkeypatch.setattr(builtins, "open", open_)  # what logging calls
    yield refused.append
    refused.clear()


@pytest.mark.parametrize("writer", WRITERS)
def test_one_line_and_the_last_checkpoint_stays(
    config: Config, begun: Path, disk_full_for: Callable[[str], None], capfd: pytest.CaptureFixture, writer: str
) -> None:
    disk_full_for(writer)
    with pytest.raises(
        UserError, match=r"cannot be .*: No space left on device; free space or choose another"
    ) as caught:
        train(config, begun, resume="auto")
    assert "\n" not in str(caught.value) and begun.name in str(caught.value)
    told = capfd.readouterr()
    assert told.err == "" and "Traceback" not in told.out and "Warning" not in told.out
    rescued = begun / "checkpoints/iter_00000002"
    assert rescued.exists() == (writer in [*OF_EVALUATION, "vdlrecords"])  # its step was done
    shutil.rmtree(rescued, ignore_errors=True)
    assert latest_checkpoint(begun / "checkpoints").name == "iter_00000001"
    log = (begun / "train.log").read_text()
    assert (str(caught.value) in log) == (writer != "train.log")


def test_the_run_goes_on_after_all_that(config: Config, begun: Path, tmp_path: Path) -> None:
    train(config, begun, resume="auto")
    train(config, tmp_path / "straight")
    last = "checkpoints/iter_00000002"
    again, straight = (load_checkpoint(run / last).groups["model"] for run in (begun, tmp_path / "straight"))
    assert all((value == again[name]).all() for name, value in straight.items())
    shutil.rmtree(begun / last)


def test_curves_that_cannot_be_drawn_end_no_run(
    config: Config, begun: Path, tmp_path: Path, disk_full_for: Callable[[str], None], capfd: pytest.CaptureFixture
) -> None:
    run = shutil.copytree(begun, tmp_path / "run")
    before = (run / "curves.png").read_bytes()
    disk_full_for("curves.png")
    train(config, run, resume="auto")
    assert "WARNING curves.png was not drawn: " in (told := capfd.readouterr()).out and told.err == ""
    assert (run / "curves.png").read_bytes() == before and (run / "checkpoints/iter_00000002").exists()


def test_a_log_on_a_full_disk_is_told_by_whoever_logs(
    tmp_path: Path, disk_full_for: Callable[[str], None], capfd: pytest.CaptureFixture
) -> None:
    disk_full_for("train.log")
    configure(file=tmp_path / "train.log")
    with pytest.raises(UserError, match=r"train\.log: the log cannot be written: No space left on device"):
        get_logger().info("a line")
    log_error_to_file(UserError("another one"))
    configure()
    assert capfd.readouterr().err == ""
