"""Atomic writing of files and folders, locks of folders, and digests."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, TextIO

from ppdet_lite.core.errors import UserError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
HAS_LOCKS = fcntl is not None  # whether files can be locked against other processes


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a hidden file beside `path` for writing bytes; rename it to `path` when the block ends without an error.

    A reader sees the old or the new content, even after a crash. Raises OSError; the incomplete file is removed.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # keep the first error
            partial.unlink()


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """`atomic_writer` for a user's output: creates the folder, and raises UserError if either cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            yield file
    except OSError as error:
        if error.errno is None:  # from the block: Paddle raises errors of CUDA as OSError
            raise
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> UserError:
    """Return the error to raise for a user's output that cannot be written."""
    return UserError(f"{path}: cannot be written: {error.strerror}; free space or choose another output")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically. Raises UserError if it cannot be written.

    Surrogates, as in names of files that are not UTF-8, are written as escapes such as \\udce9, which JSON reads.
    """
    with output_file(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def plain_json(value: Any) -> Any:
    """Return content for JSON: keys as text, NumPy scalars as numbers, and None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain_json(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    if hasattr(value, "item"):  # NumPy scalars and 0-d arrays
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Any) -> None:
    """Write an indented JSON file atomically. Raises UserError if it cannot be written."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def write_json_list(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list from an iterator, one record per line, atomically.

    The file is opened before the first record is requested. Raises UserError if it cannot be written.
    """
    with output_file(path) as file:
        separator = "[\n"
        for record in records:
            line = json.dumps(record, ensure_ascii=False, allow_nan=False)
            file.write(f"{separator}{line}".encode(errors="backslashreplace"))
            separator = ",\n"
        file.write(b"\n]\n" if separator == ",\n" else b"[]\n")


def replace_folder(new: Path, folder: Path, old: Path) -> None:
    """Rename the folder `new` to `folder`. An existing `folder` is moved to `old`, and restored if this fails.

    All three must be on one disk. A process killed between the two renames leaves `old` behind. Raises OSError.
    """
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes of this machine (POSIX only). The folder is created if it is missing.

    Created folders that are empty at the end are removed. Raises UserError if another process has the lock. The
    operating system releases the lock when the process ends.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire_lock(folder / LOCK)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another output") from error
    with lock:
        try:
            yield
        finally:
            if not HAS_LOCKS:
                lock.close()  # Windows does not remove open files
            (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # stop at the first folder that is not empty
                for path in created:
                    path.rmdir()


def _acquire_lock(path: Path) -> TextIO:
    """Lock a file and write the process id into it. Raises OSError, or UserError if another process has the lock."""
    while True:
        with contextlib.ExitStack() as stack:
            lock = stack.enter_context(path.open("a+", encoding="utf-8"))
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = f"process {lock.read().strip() or 'unknown'}"
                raise UserError(f"{path.parent}: in use by another run ({owner}); choose another output") from None
            if not _is_at(lock, path):  # removed meanwhile by its owner: a lock on it would be ineffective
                continue
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            stack.pop_all()
            return lock


@contextlib.contextmanager
def open_locked(path: Path, on_wait: Callable[[], None]) -> Iterator[BinaryIO]:
    """Open a file for appending and reading, and lock it against other processes until the end of the block.

    `on_wait` is called before waiting for a process that has the lock. The block may rename or remove the file: the
    next process then creates a new one. Does not lock without `HAS_LOCKS`. Raises OSError.
    """
    while True:
        with path.open("a+b") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    on_wait()
                    fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, path):
                yield file
                return


def _is_at(file: IO, path: Path) -> bool:
    """Return whether an open file is the file at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def require_space(folder: Path) -> None:
    """Raise OSError if the disk is full. For use after a writer that does not report it, such as Paddle's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, so that new names survive a power cut (POSIX only, no-op elsewhere)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Return the hexadecimal digest of a file's content, read in chunks."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
