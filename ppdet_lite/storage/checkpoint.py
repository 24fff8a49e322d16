"""Checkpoints: folders of safetensors and a JSON page with checksums, written so that a crash never costs the last one.

    iter_00000020/
      model.safetensors, optimizer.safetensors, ...   one file per group of named arrays
      checkpoint.json                                 format version, meta, size and sha256 of each file

Beside it, hidden: `.<name>.ckpt-partial` is being written or removed, `.<name>.ckpt-old` is being replaced. The
next save clears both; until then a reader who misses `<name>` finds its predecessor in `.<name>.ckpt-old`.
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
PAGE = "checkpoint.json"


class Checkpoint(NamedTuple):
    """What a checkpoint folder holds."""

    groups: dict[str, dict[str, np.ndarray]]  # group ("model", "optimizer", ...) -> name -> array
    meta: dict[str, Any]  # as JSON gives it back: tuples are lists, keys are strings


def save_checkpoint(folder: Path, groups: Mapping[str, Mapping[str, np.ndarray]], meta: Mapping[str, Any]) -> None:
    """Write groups of named arrays and a JSON-able `meta` as a folder that appears complete or not at all.

    A folder of that name is replaced. One process at a time may save below the same parent. Raises UserError when the
    disk is full or cannot be written; what was there before stays.
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
            _write(partial / PAGE, _page(files, meta))
            sync_folder(partial)
            replace_folder(partial, folder, _hidden(folder, "old"))  # left over, the next save clears it
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{folder}: the checkpoint cannot be written: {error.strerror}; free space or choose another output folder"
        ) from error


def load_checkpoint(folder: Path, only: Sequence[str] | None = None) -> Checkpoint:
    """Read a checkpoint, all its groups or `only` the named ones, after checking sizes and checksums.

    Raises UserError when the folder is missing, torn, altered, of a newer format or lacks a group.
    """
    folder = _present(Path(folder))
    page = _checked_page(folder)
    wanted = [name.removesuffix(".safetensors") for name in page["files"]] if only is None else only
    groups = {}
    for group in wanted:
        name = f"{group}.safetensors"
        if name not in page["files"]:
            raise UserError(f"{folder}: has no group {group!r}; it holds {', '.join(page['files'])}")
        _check_digest(folder, page, name)
        groups[group] = dict(sorted(load_file(folder / name).items()))
    return Checkpoint(groups, page["meta"])


def group_names(folder: Path) -> list[str]:
    """The groups that a checkpoint holds. Raises UserError as `load_checkpoint`."""
    return [name.removesuffix(".safetensors") for name in _checked_page(_present(Path(folder)))["files"]]


def checkpoint_meta(folder: Path) -> dict[str, Any]:
    """The meta of a checkpoint, whose files are not read. Raises UserError as `load_checkpoint`."""
    return _checked_page(_present(Path(folder)))["meta"]


def latest_checkpoint(parent: Path) -> Path | None:
    """The intact checkpoint `iter_<number>` of the highest number in a folder, or None; torn ones are logged."""
    for folder in _by_iteration(Path(parent)):
        try:
            page = _checked_page(folder)
            for name in page["files"]:
                _check_digest(folder, page, name)
        except UserError as error:
            get_logger().warning("skipped a torn checkpoint: %s", error)
        else:
            return folder
    return None


def prune(parent: Path, keep_last: int, keep: Path | None = None) -> None:
    """Remove all but the newest `keep_last` checkpoints `iter_<number>` of a folder, and `keep`.

    Torn checkpoints are not counted and not touched. Raises UserError when one cannot be removed.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}, must be at least 1")
    for folder in [folder for folder in _by_iteration(Path(parent)) if is_whole(folder)][keep_last:]:
        if keep is not None and folder.name == Path(keep).name:
            continue
        partial = _hidden(folder, "partial")  # a removal that is cut short must not leave a torn checkpoint
        try:
            folder.rename(partial)
            shutil.rmtree(partial)
        except OSError as error:
            raise UserError(f"{folder}: the old checkpoint cannot be removed: {error.strerror}") from error


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder, or the predecessor that a killed save left of it, looks like a checkpoint."""
    return (_present(Path(folder)) / PAGE).is_file()


def is_whole(folder: Path) -> bool:
    """Whether a folder is a checkpoint that has all its files in their sizes; their content is not read."""
    try:
        _checked_page(folder)
    except UserError:
        return False
    return True


def _hidden(folder: Path, state: str) -> Path:
    return folder.with_name(f".{folder.name}.ckpt-{state}")


def _present(folder: Path) -> Path:
    """The folder itself, or its predecessor if a save was killed between the two renames."""
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


def _page(files: Mapping[str, dict[str, Any]], meta: Mapping[str, Any]) -> bytes:
    page = json.loads(json.dumps({"format": FORMAT, "files": files, "meta": meta}))
    return json.dumps({**page, "sha256": _page_digest(page)}, indent=1).encode()


def _page_digest(page: Mapping[str, Any]) -> str:
    content = {name: value for name, value in page.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _write(path: Path, data: bytes) -> dict[str, Any]:
    """Write a file so that it lasts; returns its entry in the JSON page."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _checked_page(folder: Path) -> dict[str, Any]:
    """The JSON page of a checkpoint, itself checked, and the files' sizes (not yet their content)."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder")
    try:
        page = json.loads((folder / PAGE).read_bytes())
        sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    except OSError as error:
        raise UserError(f"{folder}: no checkpoint, or torn: {PAGE}: {error.strerror}; use another one") from error
    except ValueError as error:
        raise UserError(f"{folder}: torn or altered: {PAGE} is no JSON; use another checkpoint") from error
    if not isinstance(page, dict) or page.get("sha256") != _page_digest(page):
        raise UserError(f"{folder}: torn or altered: {PAGE} has another checksum; use another checkpoint")
    if page["format"] != FORMAT:
        raise UserError(f"{folder}: format {page['format']}, this version reads {FORMAT}; update ppdet_lite")
    for name, entry in page["files"].items():
        if sizes.get(name) != entry["size"]:
            found = f"{sizes[name]} bytes" if name in sizes else "missing"
            raise UserError(f"{folder}: torn: {name} is {found}, not {entry['size']} bytes; use another checkpoint")
    return page


def _check_digest(folder: Path, page: Mapping[str, Any], name: str) -> None:
    try:
        digest = file_digest(folder / name)
    except OSError as error:
        raise UserError(f"{folder / name}: cannot be read: {error.strerror}; use another checkpoint") from error
    if digest != page["files"][name]["sha256"]:
        raise UserError(f"{folder}: altered: {name} has another checksum; use another checkpoint")


def _by_iteration(parent: Path) -> list[Path]:
    """The folders iter_<number>, newest first; one that a killed save left under its hidden name counts."""
    found = {}
    for path in parent.glob("*") if parent.is_dir() else ():
        if match := re.fullmatch(r"iter_(\d+)|\.iter_(\d+)\.ckpt-old", path.name):
            number = int(match[1] or match[2])
            if match[1] or number not in found:
                found[number] = path
    return [found[number] for number in sorted(found, reverse=True)]
