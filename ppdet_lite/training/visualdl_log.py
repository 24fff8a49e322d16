"""The VisualDL log of a run, with errors for a full disk."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.training.sinks import Sink


class VisualDLLog(Sink):
    """Writes scalars and images for `visualdl --logdir FOLDER`, each call immediately.

    VisualDL's own LogWriter writes in a thread. On a full disk that thread dies, and closing the writer hangs.
    """

    def __init__(self, folder: Path) -> None:
        """Create a file in the folder. Raises UserError when it cannot be written."""
        from visualdl.component import base_component  # heavy: only training needs it
        from visualdl.writer.record_writer import RecordWriter

        self._records = base_component
        self._path = folder / f"vdlrecords.{time.time():010.0f}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("wb")
        except OSError as error:
            raise self._failure(error) from error
        self._writer = RecordWriter(self._file)
        self._write([base_component.meta_data(walltime=_now())])

    def scalars(self, group: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Write numbers, each named `group/name`. Raises UserError on a full disk."""
        self._write([self._records.scalar(f"{group}/{name}", values[name], iteration, _now()) for name in values])

    def image(self, name: str, iteration: int, pixels: np.ndarray) -> None:
        """Write an image, RGB uint8 [H, W, 3]. Raises UserError on a full disk."""
        self._write([self._records.image(name, pixels, iteration, _now())])

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _write(self, records: Sequence[Any]) -> None:
        try:
            for record in records:
                self._writer.write(record.SerializeToString())
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: cannot be written: {error.strerror}; free space or choose another output")


def _now() -> int:
    """Milliseconds, as VisualDL counts."""
    return round(time.time() * 1000)
