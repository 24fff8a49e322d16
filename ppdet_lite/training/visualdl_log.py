"""VisualDL's log, written so that a full disk is told."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError


class Board:
    """Writes scalars and pictures for `visualdl --logdir FOLDER`, each call at once.

    VisualDL's own LogWriter writes in a thread, which dies of a full disk; what waits for that thread waits for ever.
    """

    def __init__(self, folder: Path) -> None:
        """Begin a file in the folder. Raises UserError when it cannot be written."""
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
        self._write(base_component.meta_data(walltime=_now()))

    def scalars(self, group: str, values: Mapping[str, float], iteration: int) -> None:
        """Write numbers, each named `group/name`. Raises UserError on a full disk."""
        scalar = self._records.scalar
        self._write(*(scalar(f"{group}/{name}", value, iteration, _now()) for name, value in values.items()))

    def image(self, name: str, pixels: np.ndarray, iteration: int) -> None:
        """Write a picture, RGB uint8 [H, W, 3]. Raises UserError on a full disk."""
        self._write(self._records.image(name, pixels, iteration, _now()))

    def close(self) -> None:
        """Close the file."""
        try:
            self._file.close()
        except OSError as error:
            raise self._failure(error) from error

    def _write(self, *records: Any) -> None:
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
