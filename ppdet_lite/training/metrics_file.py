"""metrics.jsonl: the measurements of a run, one JSON object per line and recorded iteration."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.files import atomic_writer, plain_json, write_error
from ppdet_lite.training.sinks import Sink


class MetricsFile(Sink):
    """Appends one JSON object per line to metrics.jsonl and flushes each line."""

    def __init__(self, path: Path, resume_iteration: int | None = None) -> None:
        """Open the file. An incomplete last line is removed and, on resume, every line after `resume_iteration`.

        Raises UserError when the file cannot be written or a line of it is not an object with an iteration.
        """
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._remove_lines(resume_iteration)
            self._file: TextIO = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise write_error(self._path, error) from error

    def scalars(self, group: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Write the groups "train" and "val". Names of validation losses get the prefix val_, metrics (A...) do not."""
        if group == "train":
            self.write(iteration, values)
        elif group == "val":
            self.write(iteration, {k if k.startswith("A") else f"val_{k}": value for k, value in values.items()})

    def write(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Append a line. NumPy scalars become plain numbers, NaN and infinities null.

        Raises UserError on a full disk.
        """
        line = json.dumps(plain_json({"iteration": iteration, **values}), allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self._path, error) from error

    def close(self) -> None:
        """Close the file. Raises UserError if the disk is full and a line is still buffered."""
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self._path, error) from error

    def _remove_lines(self, resume_iteration: int | None) -> None:
        if not self._path.exists():
            return
        before = self._path.read_bytes()
        lines = before.splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        if resume_iteration is not None:
            lines = [line for number, line in enumerate(lines, 1) if self._iteration(line, number) <= resume_iteration]
        after = b"".join(lines)
        if after != before:
            with atomic_writer(self._path) as file:
                file.write(after)

    def _iteration(self, line: bytes, number: int) -> int:
        try:
            return int(json.loads(line)["iteration"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self._path}:{number}: not a JSON object with an iteration; remove that line") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl, without an incomplete last line. Raises UserError if it cannot be read."""
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: a line is not JSON ({error}); remove that line") from error
