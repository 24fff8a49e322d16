"""Checkpoints: folders of safetensors files and a JSON index with checksums. A crash while saving keeps the last one.

    iter_00000020/
      model.safetensors, optimizer.safetensors, ...   one file per group of named arrays
      checkpoint.json                                 format version, meta, size and sha256 of each file

Hidden folders beside it: `.<name>.ckpt-partial` is being written or removed, `.<name>.ckpt-old` is being replaced.
After a process was killed, the next save clears both. Until then, a missing `<name>` is read from `.<name>.ckpt-old`.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file, save

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.storage.files import file_digest, replace_folder, sync_folder

FORMAT = 1
INDEX = "checkpoint.json"


class Checkpoint(NamedTuple):
    """The content of a checkpoint folder."""

    groups: dict[str, dict[str, np.ndarray]]  # group ("model", "optimizer", ...) -> name -> array
    meta: dict[str, Any]  # after a JSON round trip: tuples are lists, keys are strings


def save_checkpoint(folder: Path, groups: Mapping[str, Mapping[str, np.ndarray]], meta: Mapping[str, Any]) -> None:
    """Write groups of named arrays and JSON-serializable `meta` as a folder, atomically.

    An existing folder is replaced. Only one process at a time may save below the same parent. Raises UserError if the
    disk is full or not writable; the existing folder is kept then.
    """
    folder = Path(folder)
    partial = _hidden(folder, "partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(folder.parent)
        try:
            partial.mkdir()
            files = {}
            for group, arrays in groups.items():
                data = save({name: np.asarray(array, order="C") for name, array in arrays.items()})
                files[f"{group}.safetensors"] = _write(partial / f"{group}.safetensors", data)
            _write(partial / INDEX, _index_content(files, meta))
            sync_folder(partial)
            replace_folder(partial, folder, _hidden(folder, "old"))  # a leftover is cleared by the next save
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the checkpoint cannot be written: {error.strerror}; free space or choose another output folder"
        ) from error


def load_checkpoint(folder: Path, only: Sequence[str] | None = None) -> Checkpoint:
    """Read all groups of a checkpoint, or `only` the named ones, and verify sizes and checksums.

    Raises UserError if the folder is missing, incomplete, modified, of a newer format or without one of the groups.
    """
    folder = _existing(Path(folder))
    index = _read_index(folder)
    names = [name.removesuffix(".safetensors") for name in index["files"]] if only is None else only
    groups = {}
    for group in names:
        name = f"{group}.safetensors"
        if name not in index["files"]:
            raise UserError(f"{folder}: has no group {group!r}; it contains {', '.join(index['files'])}")
        _check_digest(folder, index, name)
        groups[group] = dict(sorted(load_file(folder / name).items()))
    return Checkpoint(groups, index["meta"])


def group_names(folder: Path) -> list[str]:
    """Return the names of a checkpoint's groups. Raises UserError as `load_checkpoint` does."""
    return [name.removesuffix(".safetensors") for name in _read_index(_existing(Path(folder)))["files"]]


def checkpoint_meta(folder: Path) -> dict[str, Any]:
    """Return the meta of a checkpoint without reading its arrays. Raises UserError as `load_checkpoint` does."""
    return _read_index(_existing(Path(folder)))["meta"]


def latest_checkpoint(parent: Path) -> Path | None:
    """Return the intact checkpoint `iter_<number>` with the highest number, or None. Damaged ones are logged."""
    for folder in _by_iteration(Path(parent)):
        try:
            index = _read_index(folder)
            for name in index["files"]:
                _check_digest(folder, index, name)
        except UserError as error:
            get_logger().warning("skipped a damaged checkpoint: %s", error)
        else:
            return folder
    return None


def prune(parent: Path, keep_last: int) -> None:
    """Remove all checkpoints `iter_<number>` of a folder except the newest `keep_last`.

    Incomplete checkpoints are neither counted nor removed. Raises UserError if one cannot be removed.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}, must be at least 1")
    for folder in [folder for folder in _by_iteration(Path(parent)) if is_complete_checkpoint(folder)][keep_last:]:
        partial = _hidden(folder, "partial")  # an interrupted removal must not leave an incomplete checkpoint
        try:
            folder.rename(partial)
            shutil.rmtree(partial)
        except OSError as error:
            raise UserError(f"{folder}: the old checkpoint cannot be removed: {error.strerror}") from error


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder, or its previous version left by a killed save, has a checkpoint's index file."""
    return (_existing(Path(folder)) / INDEX).is_file()


def is_complete_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint with all files in the right sizes. Their content is not read."""
    try:
        _read_index(folder)
    except UserError:
        return False
    return True


def _hidden(folder: Path, state: str) -> Path:
    return folder.with_name(f".{folder.name}.ckpt-{state}")


def _existing(folder: Path) -> Path:
    """Return the folder, or its previous version if a save was killed between the two renames."""
    old = _hidden(folder, "old")
    return old if not folder.exists() and old.exists() else folder


def _clear_leftovers(parent: Path) -> None:
    for partial in parent.glob(".*.ckpt-partial"):
        shutil.rmtree(partial)
    for old in parent.glob(".*.ckpt-old"):
        folder = parent / old.name[1 : -len(".ckpt-old")]
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def _index_content(files: Mapping[str, dict[str, Any]], meta: Mapping[str, Any]) -> bytes:
    index = json.loads(json.dumps({"format": FORMAT, "files": files, "meta": meta}))
    return json.dumps({**index, "sha256": _index_digest(index)}, indent=1).encode()


def _index_digest(index: Mapping[str, Any]) -> str:
    content = {name: value for name, value in index.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file, flush it to the disk and return its entry in the index."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _read_index(folder: Path) -> dict[str, Any]:
    """Read the index of a checkpoint. Verify its own checksum and the files' sizes, but not their content."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder")
    try:
        index = json.loads((folder / INDEX).read_bytes())
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    except OSError as error:
        raise UserError(f"{folder}: not a checkpoint or incomplete: {INDEX}: {error.strerror}; use another") from error
    except ValueError as error:
        raise UserError(f"{folder}: incomplete or modified: {INDEX} is not JSON; use another checkpoint") from error
    if not isinstance(index, dict) or index.get("sha256") != _index_digest(index):
        raise UserError(f"{folder}: incomplete or modified: {INDEX} has a wrong checksum; use another checkpoint")
    if index["format"] != FORMAT:
        raise UserError(f"{folder}: format {index['format']}, this version reads {FORMAT}; update ppdet_lite")
    for name, entry in index["files"].items():
        if sizes.get(name) != entry["size"]:
            size = f"has {sizes[name]} bytes instead of {entry['size']}" if name in sizes else "is missing"
            raise UserError(f"{folder}: incomplete: {name} {size}; use another checkpoint")
    return index


def _check_digest(folder: Path, index: Mapping[str, Any], name: str) -> None:
    try:
        digest = file_digest(folder / name)
    except OSError as error:
        raise UserError(f"{folder / name}: cannot be read: {error.strerror}; use another checkpoint") from error
    if digest != index["files"][name]["sha256"]:
        raise UserError(f"{folder}: modified: {name} has a wrong checksum; use another checkpoint")


def _by_iteration(parent: Path) -> list[Path]:
    """Return the folders iter_<number>, newest first, including one left under its hidden name by a killed save."""
    folders = {}
    for path in parent.glob("*") if parent.is_dir() else ():
        if match := re.fullmatch(r"iter_(\d+)|\.iter_(\d+)\.ckpt-old", path.name):
            number = int(match[1] or match[2])
            if match[1] or number not in folders:
                folders[number] = path
    return [folders[number] for number in sorted(folders, reverse=True)]
