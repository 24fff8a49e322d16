"""Runs that are asked to stop, that meet another one in their folder, and what their log says in the end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import Stopped, UserError
from ppdet_lite.core.stopping import StopRequest
from ppdet_lite.storage.checkpoint import load_checkpoint
from ppdet_lite.storage.files import folder_lock
from ppdet_lite.training import loop
from ppdet_lite.training.loop import train
from ppdet_lite.training.metrics_file import read_metrics
from tests.tiny_run import QUICKSTART, small_shapes

ROOT = Path(__file__).resolve().parents[2]
TOTAL = 12


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        *small_shapes(tmp_path_factory.mktemp("shapes"), train=6, val=2),
        f"train={{length: {TOTAL} iterations, checkpoint_every: null, log_every: 1}}",
    ]


def command(options: list[str], output: Path, *more: str) -> list[str]:
    tool = [sys.executable, str(ROOT / "tools/train.py"), "-c", str(QUICKSTART)]
    return [*tool, "-o", *options, f"output={output}", *more]


def stopped_run(options: list[str], output: Path, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """A run that hears a signal once it has made some steps."""
    metrics = output / "shapes_r18_fpn/metrics.jsonl"
    process = subprocess.Popen(
        command(options, output),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= 3:
            process.send_signal(number)
            break
        time.sleep(0.01)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def weights_of(output: Path) -> dict[str, np.ndarray]:
    return load_checkpoint(output / f"shapes_r18_fpn/checkpoints/iter_{TOTAL:08d}").groups["model"]


@pytest.fixture(scope="module")
def straight(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    output = tmp_path_factory.mktemp("straight")
    subprocess.run(command(options, output), check=True, capture_output=True)
    return weights_of(output)


def test_a_run_that_is_stopped_before_its_first_step_says_so(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def build_dataset(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)  # the signal ends it

    monkeypatch.setattr(loop, "build_dataset", build_dataset)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        train(load_config(QUICKSTART, options), tmp_path / "run")
    assert stopped.value.code == 0 and signal.getsignal(signal.SIGTERM) is before
    assert "WARNING stopped by SIGTERM before the first step" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_stopped_run_goes_on_to_the_same_weights(
    options: list[str], straight: dict[str, np.ndarray], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    done = stopped_run(options, tmp_path, number)
    assert done.returncode == code and done.stderr == "", done.stderr
    checkpoints = [path.name for path in (tmp_path / "shapes_r18_fpn/checkpoints").iterdir()]
    assert len(checkpoints) == 1 and checkpoints[0] < f"iter_{TOTAL:08d}"
    said = f"WARNING stopped by {number.name} after iteration {int(checkpoints[0][5:])}; resume with --resume auto"
    assert said in done.stdout and said in (tmp_path / "shapes_r18_fpn/train.log").read_text()
    subprocess.run(command(options, tmp_path, "--resume", "auto"), check=True, capture_output=True)
    again = weights_of(tmp_path)
    assert again.keys() == straight.keys()
    for name, value in straight.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)


def test_the_second_request_ends_the_process_at_once() -> None:
    code = """
import os, signal, time
from ppdet_lite.core.stopping import StopRequest
with StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.is_requested
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM


@pytest.fixture
def request_made() -> Iterator[StopRequest]:
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        yield stop


def test_what_can_be_done_again_is_broken_off(request_made: StopRequest) -> None:
    with pytest.raises(Stopped, match="stopped by SIGTERM") as caught, request_made.interruptible():
        raise AssertionError("not entered")
    assert caught.value.code == 0
    with StopRequest() as stop, pytest.raises(Stopped), stop.interruptible():
        with contextlib.suppress(Exception):  # as libraries do that read damaged files
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        raise AssertionError("gone on")


def test_one_of_several_stops_when_all_agree() -> None:
    """Paddle's launcher says it three times in half a second: that is one request."""
    with StopRequest(single_process=False) as stop:
        stop.raise_if_received()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        with stop.interruptible():
            assert stop.received is signal.SIGTERM and not stop.is_requested
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            stop.raise_if_received()
        stop.agree([None, stop.received])
        with pytest.raises(Stopped), stop.interruptible():
            raise AssertionError("not entered")
    with StopRequest(single_process=False) as other:
        other.agree([None, signal.SIGINT])
        assert other.is_requested and other.received is None


def test_an_evaluation_that_was_missed_is_made_up_for(options: list[str], tmp_path: Path) -> None:
    """Stopped when it was due: the checkpoint says so, and the resumed run begins with it."""
    overrides = [*options, "train.length=2 iterations", "train.evaluate_every=2 iterations"]
    config = load_config(QUICKSTART, overrides)
    train(config, tmp_path / "run")
    folder = tmp_path / "run/checkpoints/iter_00000002"
    from ppdet_lite.storage.checkpoint import save_checkpoint

    groups, meta = load_checkpoint(folder)
    save_checkpoint(folder, groups, {**meta, "evaluated": 0, "best": None})
    for name in ("bbox.json", "metrics.json"):
        (tmp_path / "run" / name).unlink()
    train(config, tmp_path / "run", resume="auto")
    assert (tmp_path / "run/metrics.json").exists()
    assert load_checkpoint(folder)[1]["evaluated"] == 2
    (tmp_path / "run/metrics.json").unlink()
    train(config, tmp_path / "run", resume="auto")
    assert not (tmp_path / "run/metrics.json").exists()  # not evaluated a second time


def test_another_best_metric_on_resume_is_warned_about(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    overrides = [*options, "train.length=1 iterations", "train.evaluate_every=1 iterations"]
    train(load_config(QUICKSTART, overrides), tmp_path / "run")
    train(load_config(QUICKSTART, [*overrides, "train.best_metric=AP50"]), tmp_path / "run", resume="auto")
    message = "train.best_metric is AP50 now: the next evaluation replaces checkpoints/best ({'AP': "
    assert message in capsys.readouterr().out


def test_a_folder_has_one_run_at_a_time(options: list[str], tmp_path: Path) -> None:
    config = load_config(QUICKSTART, [*options, "train.length=1 iterations"])
    with folder_lock(tmp_path / "run"):
        held = subprocess.run(
            command([*options, "train.length=1 iterations"], tmp_path), capture_output=True, text=True
        )
        assert held.returncode == 0  # another folder
        done = subprocess.run(
            [sys.executable, "-c", LOCKED, str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True
        )
        assert f"run: in use by another run (process {os.getpid()}); choose another output" in done.stderr
    train(config, tmp_path / "run")
    assert not (tmp_path / "run/.lock").exists()


LOCKED = """
import sys, pathlib
from ppdet_lite.storage.files import folder_lock
with folder_lock(pathlib.Path(sys.argv[1])): pass
"""


def test_what_a_run_without_a_checkpoint_left_is_set_aside(options: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "train.log").write_text("old")
    (run / "metrics.jsonl").write_text('{"iteration": 1}\n')
    train(load_config(QUICKSTART, [*options, "train.length=1 iterations"]), run)
    assert (run / "aborted-1/train.log").read_text() == "old" and (run / "aborted-1/metrics.jsonl").exists()
    assert "were moved to" in (run / "train.log").read_text()


def test_torn_checkpoints_are_set_aside_too(options: list[str], tmp_path: Path) -> None:
    config, run = load_config(QUICKSTART, [*options, "train.length=1 iterations"]), tmp_path / "run"
    train(config, run)
    (run / "checkpoints/iter_00000001/checkpoint.json").unlink()
    train(config, run)
    assert (run / "aborted-1/checkpoints/iter_00000001").exists() and (run / "aborted-1/train.log").exists()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["iter_00000001"]


def test_going_back_to_an_earlier_checkpoint_sets_later_ones_aside(options: list[str], tmp_path: Path) -> None:
    """They would be taken for the newest: those of the new course would be pruned at once, and `auto` take the old.

    Torn ones go too, and so do the lines of metrics.jsonl.
    """
    run, every = tmp_path / "run", ["train.checkpoint_every=1 iterations", "train.keep_last=3", "train.log_every=1"]
    train(load_config(QUICKSTART, [*options, *every, "train.length=3 iterations"]), run, evaluate_at_end=True)
    (run / "checkpoints/iter_00000003/checkpoint.json").unlink()
    shorter = load_config(QUICKSTART, [*options, *every, "train.length=2 iterations"])
    train(shorter, run, resume=str(run / "checkpoints/iter_00000001"))
    assert {path.name for path in (run / "aborted-1").iterdir()} == {"iter_00000002", "iter_00000003", "best"}
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"iter_00000001", "iter_00000002"}
    assert "WARNING checkpoints after iter_00000001 were moved to" in (run / "train.log").read_text()
    assert [row["iteration"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2]
    train(shorter, run, resume="auto")
    assert not (run / "aborted-2").exists()


def test_anothers_checkpoint_is_not_gone_on_with_in_a_runs_folder(options: list[str], tmp_path: Path) -> None:
    config = load_config(QUICKSTART, [*options, "train.length=1 iterations"])
    for name in ("one", "other"):
        train(config, tmp_path / name)
    with pytest.raises(UserError, match=r"one contains another run than .*iter_00000001; choose another folder"):
        train(config, tmp_path / "one", resume=str(tmp_path / "other/checkpoints/iter_00000001"))


def test_a_second_run_in_a_folder_is_refused(options: list[str], tmp_path: Path) -> None:
    held = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert held.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match=rf"in use by another run \(process {held.pid}\); choose another output"):
        train(load_config(QUICKSTART, [*options, "train.length=1 iterations"]), tmp_path / "run")
    held.communicate(b"\n")
    assert not (tmp_path / "run").exists()  # nothing was written


HOLDING = """
import sys, pathlib
from ppdet_lite.storage.files import folder_lock
with folder_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_error_that_ends_a_run_is_in_its_log(options: list[str], tmp_path: Path) -> None:
    """On the command line it stands alone; the log file has it too."""
    more = ["train.length=1 iterations", "train.checkpoint_every=0 iterations"]
    with pytest.raises(UserError, match="must be at least one iteration"):
        train(load_config(QUICKSTART, [*options, *more]), tmp_path / "run")
    assert "ERROR" in (log := (tmp_path / "run/train.log").read_text()) and "must be at least one iteration" in log
