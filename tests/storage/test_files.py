"""Locks of folders, and JSON files."""

import fcntl
import json
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage import files
from ppdet_lite.storage.files import LOCK, folder_lock, plain_json, write_json, write_json_list, write_text


def test_a_lock_file_that_its_owner_just_removed_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened, removed by its owner and created again by a third process: only the new file counts."""
    locked, calls = fcntl.flock, []

    def after_a_change_of_holders(file, operation):
        if not calls:
            (tmp_path / LOCK).unlink()
            (tmp_path / LOCK).touch()
        calls.append(file)
        locked(file, operation)

    monkeypatch.setattr(files.fcntl, "flock", after_a_change_of_holders)
    with folder_lock(tmp_path):
        assert len(calls) == 2 and calls[0].closed
        with pytest.raises(UserError, match="in use by another run"), folder_lock(tmp_path):
            pass


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_an_unwritable_lock_is_reported(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written: .*; choose another output"), folder_lock(tmp_path):
        pass


def test_folders_that_stay_empty_are_removed(tmp_path: Path) -> None:
    """A refused run leaves nothing; a run that wrote something leaves that."""
    with folder_lock(tmp_path / "output/run"):
        assert (tmp_path / "output/run" / LOCK).exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with folder_lock(tmp_path / "there"), folder_lock(tmp_path / "output/run"):
        (tmp_path / "output/other").mkdir()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["other", "output", "there"]


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    """JSON reads the escapes as the same names; other text keeps its letters."""
    write_json_list(tmp_path / "list.json", [{"file": "caf\udce9.png"}, {"file": "猫.png"}])
    write_json(tmp_path / "one.json", "caf\udce9")
    write_text(tmp_path / "a.csv", "é,caf\udce9\n")
    assert json.loads((tmp_path / "list.json").read_text("utf-8")) == [{"file": "caf\udce9.png"}, {"file": "猫.png"}]
    assert json.loads((tmp_path / "one.json").read_text("utf-8")) == "caf\udce9"
    assert (tmp_path / "a.csv").read_text("utf-8") == "é,caf\\udce9\n"


def test_plain_json_has_no_nan() -> None:
    value = {1: np.float32(0.5), "a": [float("nan"), float("inf"), np.int64(3)], "b": ("x", None, True)}
    assert plain_json(value) == {"1": 0.5, "a": [None, None, 3], "b": ["x", None, True]}
