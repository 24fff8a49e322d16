"""The VisualDL log of a run, with errors for a full disk."""

import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ppdet_lite.storage.files import atomic_writer, write_error
from ppdet_lite.training.sinks import Sink


class VisualDLLog(Sink):
    """Writes scalars and images for `visualdl --logdir FOLDER`, each call immediately.

    VisualDL shows only one record file per folder. In a resumed run, the first record written copies those of earlier
    files, up to iteration `start`, into a new file, which replaces them.

    VisualDL's own LogWriter is not used: it writes in a thread, which ends on a full disk, and closing it then hangs.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        from visualdl.component import base_component  # imported late, since it is slow

        self._records, self._folder, self._start = base_component, folder, start
        self._path = folder / f"vdlrecords.{time.time():010.0f}.log"
        self._file: BinaryIO | None = None

    def scalars(self, group: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Write numbers, each named `group/name`. Raises UserError on a full disk."""
        self._write([self._records.scalar(f"{group}/{name}", values[name], iteration, _now()) for name in values])

    def image(self, name: str, iteration: int, pixels: np.ndarray) -> None:
        """Write an image, RGB uint8 [H, W, 3]. Raises UserError on a full disk."""
        self._write([self._records.image(name, pixels, iteration, _now())])

    def close(self) -> None:
        """Close the file."""
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:
            raise write_error(self._path, error) from error

    def _write(self, records: Sequence[Any]) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            for record in records:
                self._file.write(_framed(record.SerializeToString()))
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error

    def _open(self) -> BinaryIO:
        """Create the file with the earlier records, and remove the files that it replaces."""
        self._folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(self._folder.glob("vdlrecords.*.log"))
        meta = self._records.meta_data(walltime=_now()).SerializeToString()
        with atomic_writer(self._path) as file:
            file.write(_framed(meta))
            for content in _earlier_records(earlier, self._start):
                file.write(_framed(content))
        for path in earlier:
            if path != self._path:
                path.unlink()
        return self._path.open("ab")


def _now() -> int:
    """Return the time in milliseconds, the unit of VisualDL."""
    return round(time.time() * 1000)


def _framed(content: bytes) -> bytes:
    """Return a record in the format of VisualDL's files: its length in 8 bytes, then its content."""
    return struct.pack("<Q", len(content)) + content


def _earlier_records(paths: Sequence[Path], last: int) -> Iterator[bytes]:
    """Yield the records of files up to iteration `last`; of those with equal tag and iteration, only the latest.

    A file is read up to its first damaged record, which a crash may have left at its end.
    """
    from google.protobuf.message import DecodeError
    from visualdl.proto.record_pb2 import Record

    records: dict[tuple[str, int], bytes] = {}
    for path in paths:
        content, start = path.read_bytes(), 0
        while start + 8 <= len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            data, start = content[start + 8 : start + 8 + length], start + 8 + length
            if len(data) < length:
                break
            try:
                value = Record.FromString(data).values[0]
            except (DecodeError, IndexError):
                break
            if value.WhichOneof("one_value") != "meta_data" and value.id <= last:
                records[value.tag, value.id] = data
    yield from records.values()
