"""Files that appear complete or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ppdet_lite.core.errors import UserError

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None

LOCK = ".lock"


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a hidden file beside `path` for bytes; it takes the name `path` once the block has ended well.

    A reader sees the old content or the new, also after a crash. Raises OSError; the half-written file is removed.
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
        with contextlib.suppress(OSError):  # it is the first error that matters
            partial.unlink()


@contextlib.contextmanager
def output_file(path: Path) -> Iterator[BinaryIO]:
    """`atomic_writer` for what a user asked for: makes the folder, raises UserError where that cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            yield file
    except OSError as error:
        if error.errno is None:  # from within the block, such as CUDA's, which Paddle raises as OSError
            raise
        raise UserError(f"{path}: cannot be written: {error.strerror}; free space or choose another output") from error


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all. Raises UserError when it cannot be written."""
    with output_file(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write an indented JSON file, whole or not at all. Raises UserError when it cannot be written."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))


def write_json_list(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list while its records come in, one on a line; the file appears whole or not at all.

    It is opened before the first record is asked for. Raises UserError when it cannot be written.
    """
    with output_file(path) as file:
        separator = "[\n"
        for record in records:
            file.write(f"{separator}{json.dumps(record, ensure_ascii=False, allow_nan=False)}".encode())
            separator = ",\n"
        file.write(b"\n]\n" if separator == ",\n" else b"[]\n")


def replace_folder(new: Path, folder: Path, old: Path) -> None:
    """Give a finished folder its name; what had that name waits as `old`, and comes back should this fail.

    All three are on one disk. A process killed between the two renames leaves `old`. Raises OSError.
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
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes of this machine (POSIX only), and make it if need be.

    Folders that were made and are empty in the end are removed. Raises UserError when another process holds it. The
    lock ends with the process, however that ends.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder / LOCK)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another output") from error
    with lock:
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # as soon as one is not empty
                for path in made:
                    path.rmdir()


def _locked(path: Path) -> TextIO:
    """The lock file, locked and with this process's number in it. Raises OSError; UserError if another one has it."""
    while True:
        with contextlib.ExitStack() as held:
            lock = held.enter_context(path.open("a+", encoding="utf-8"))
            try:
                if fcntl is not None:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                owner = f"process {lock.read().strip() or 'unknown'}"
                raise UserError(f"{path.parent}: another run writes into it ({owner}); choose another output") from None
            if not _is_at(lock, path):  # who had it has removed it meanwhile: nobody else would find this one
                continue
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            held.pop_all()
            return lock


def _is_at(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one that a path names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def require_space(folder: Path) -> None:
    """Raise OSError where the disk is full, after a writer that does not say so itself, such as Paddle's."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make new and changed names in a folder last through a power cut (POSIX only; elsewhere there is no such call)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file's content, read in pieces."""
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
