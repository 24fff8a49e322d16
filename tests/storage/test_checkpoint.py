"""Checkpoints: bit-exact, complete or absent; damage is detected."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage import checkpoint
from ppdet_lite.storage.checkpoint import is_checkpoint, latest_checkpoint, load_checkpoint, prune, save_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def groups(value: float = 1.0) -> dict[str, dict[str, np.ndarray]]:
    return {"model": {"w": np.full([2, 3], value, np.float32)}, "optimizer": {"step": np.array(7)}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "array",
    [
        np.array(3.25, np.float32),
        np.array(-(2**62) + 1, np.int64),
        np.array([True, False]),
        np.array([np.nan, -0.0, np.inf, 5e-324]),
        np.arange(65530, 65536, dtype=np.uint16),
        np.zeros([0, 4], np.float32),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1)[::-1, :, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">f4"),
    ],
    ids=["0-d", "int64", "bool", "odd floats", "uint16", "empty", "strided", "fortran", "big-endian"],
)
def test_arrays_come_back_bit_exactly(tmp_path, array):
    save_checkpoint(tmp_path / "c", {"model": {"a": array}}, {})
    found = load_checkpoint(tmp_path / "c").groups["model"]["a"]
    native = array.astype(array.dtype.newbyteorder("="))
    assert (found.shape, found.dtype) == (array.shape, native.dtype)
    assert found.tobytes() == native.tobytes()


def test_meta_and_groups_come_back(tmp_path):
    meta = {
        "iteration": 20,
        "best": {"AP": 0.1 + 0.2},
        "classes": ["Hündin", "cat"],
        "scale": (1, 2),
        "ids": {10: 1, 9: 2},
    }
    save_checkpoint(tmp_path / "new" / "iter_20", groups(), meta)
    found = load_checkpoint(tmp_path / "new" / "iter_20")
    assert found.meta == {**meta, "scale": [1, 2], "ids": {"10": 1, "9": 2}}
    assert list(found.groups) == ["model", "optimizer"]
    assert list(load_checkpoint(tmp_path / "new" / "iter_20", only=["model"]).groups) == ["model"]
    assert names(tmp_path / "new") == ["iter_20"]
    with pytest.raises(UserError, match=r"has no group 'ema'; it contains model.safetensors, optimizer.safetensors"):
        load_checkpoint(tmp_path / "new" / "iter_20", only=["ema"])


def test_an_existing_folder_is_replaced_whole(tmp_path):
    save_checkpoint(tmp_path / "best", {**groups(1), "ema": {"w": np.zeros(2)}}, {"n": 1})
    save_checkpoint(tmp_path / "best", groups(2), {"n": 2})
    found = load_checkpoint(tmp_path / "best")
    assert found.meta == {"n": 2} and list(found.groups) == ["model", "optimizer"]
    assert (found.groups["model"]["w"] == 2).all()
    assert names(tmp_path) == ["best"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_every_flipped_byte_is_noticed(tmp_path, name):
    folder = tmp_path / "c"
    save_checkpoint(folder, groups(), {"iteration": 20})
    whole = (folder / name).read_bytes()
    for place in range(len(whole)):
        altered = bytearray(whole)
        altered[place] ^= 0x01
        (folder / name).write_bytes(altered)
        with pytest.raises(UserError, match=r"c: .*(incomplete|modified)"):
            load_checkpoint(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoint.json"])
def test_a_cut_or_missing_file_is_noticed(tmp_path, name):
    folder = tmp_path / "c"
    save_checkpoint(folder, groups(), {})
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-5])
    with pytest.raises(UserError, match=f"c: incomplete.*{name}"):
        load_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"incomplete.*{name}"):
        load_checkpoint(folder)


def test_a_missing_folder_and_a_newer_format_are_reported(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="nowhere: no such checkpoint folder"):
        load_checkpoint(tmp_path / "nowhere")
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    save_checkpoint(tmp_path / "c", groups(), {})
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 2, this version reads 1; update ppdet_lite"):
        load_checkpoint(tmp_path / "c")


def save_and_die(folder: Path, call: str, count: int) -> None:
    """Save value 2 in another process that kills itself at the count-th call of a function of os or Path."""
    code = f"""
        import os, signal, sys
        from pathlib import Path
        import numpy as np
        from ppdet_lite.storage.checkpoint import save_checkpoint
        original, calls = {call}, []
        def dying(*arguments):
            calls.append(1)
            if len(calls) == {count}:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)
        {call} = dying
        groups = {{"model": {{"w": np.full([2, 3], 2, np.float32)}}, "optimizer": {{"step": np.array(7)}}}}
        save_checkpoint(Path(sys.argv[1]), groups, {{"iteration": 2}})
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("call", "count"),
    [("os.fsync", 1), ("os.fsync", 3), ("os.fsync", 4), ("Path.rename", 1), ("Path.rename", 2), ("os.fsync", 5)],
    ids=["first file", "page", "folder", "before replacing", "between the renames", "after replacing"],
)
def test_a_killed_save_costs_nothing(tmp_path, call, count):
    folder = tmp_path / "iter_00000002"
    save_checkpoint(folder, groups(1), {"iteration": 1})
    save_and_die(folder, call, count)
    assert is_checkpoint(folder)
    found = load_checkpoint(folder)
    assert found.meta["iteration"] == (2 if (call, count) == ("os.fsync", 5) else 1)
    assert (found.groups["model"]["w"] == found.meta["iteration"]).all()
    latest = latest_checkpoint(tmp_path)
    assert load_checkpoint(latest).meta == found.meta
    assert len(names(tmp_path)) == 2  # one leftover, or the old one and the new under hidden names

    save_checkpoint(tmp_path / "iter_00000003", groups(3), {"iteration": 3})
    assert names(tmp_path) == ["iter_00000002", "iter_00000003"]  # it is gone
    assert load_checkpoint(folder).meta == found.meta


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    folder = tmp_path / "best"
    save_checkpoint(folder, groups(1), {"n": 1})

    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="best: the checkpoint cannot be written: No space left on device; free space"):
        save_checkpoint(folder, groups(2), {"n": 2})
    assert names(tmp_path) == ["best"]
    assert load_checkpoint(folder).meta == {"n": 1}


def test_a_failed_rename_puts_the_old_one_back(tmp_path, monkeypatch):
    folder = tmp_path / "best"
    save_checkpoint(folder, groups(1), {"n": 1})
    rename = Path.rename

    def failing(path, target):
        if path.name.endswith("partial"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(UserError, match="Input/output error"):
        save_checkpoint(folder, groups(2), {"n": 2})
    assert names(tmp_path) == ["best"]
    assert load_checkpoint(folder).meta == {"n": 1}


def test_an_unwritable_folder_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/iter_1: the checkpoint cannot be written"):
        save_checkpoint(tmp_path / "file" / "iter_1", groups(), {})


def test_the_latest_is_the_highest_intact_number(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "nowhere") is None
    for name in ("iter_00000020", "iter_00000100", "iter_00000090", "best", "iter_new"):
        save_checkpoint(tmp_path / name, groups(), {})
    assert latest_checkpoint(tmp_path).name == "iter_00000100"


def test_damaged_checkpoints_are_skipped_with_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    for name in ("iter_00000020", "iter_00000040", "iter_00000060"):
        save_checkpoint(tmp_path / name, groups(), {})
    (tmp_path / "iter_00000060" / "checkpoint.json").unlink()
    altered = tmp_path / "iter_00000040" / "optimizer.safetensors"
    altered.write_bytes(altered.read_bytes()[:-1] + b"\x55")
    assert latest_checkpoint(tmp_path).name == "iter_00000020"
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "iter_00000060" in caplog.text and "optimizer.safetensors has a wrong checksum" in caplog.text


def test_prune_keeps_the_newest(tmp_path):
    for iteration in (20, 40, 60, 80, 100):
        save_checkpoint(tmp_path / f"iter_{iteration:08}", groups(), {})
    save_checkpoint(tmp_path / "best", groups(), {})
    page = tmp_path / "iter_00000100" / "checkpoint.json"
    page.write_text(json.dumps({}))  # torn: neither counted nor removed
    prune(tmp_path, keep_last=2)
    assert names(tmp_path) == ["best", "iter_00000060", "iter_00000080", "iter_00000100"]
    prune(tmp_path, keep_last=1)
    assert names(tmp_path) == ["best", "iter_00000080", "iter_00000100"]
    with pytest.raises(ValueError, match="keep_last is 0"):
        prune(tmp_path, keep_last=0)
