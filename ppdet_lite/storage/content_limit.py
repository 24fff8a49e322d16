"""A limit of the memory that a file's content takes, so that a small file does not become huge.

Compression, many references to one object and repeated calls can expand a file thousandfold. Weights do not: they are
stored as they are, because their numbers are as good as random.
"""

from pathlib import Path

from ppdet_lite.core.errors import UserError

FACTOR = 10  # times the file's size: conversion to float32, views and copies of intact files need up to 6
FLOOR = 64 << 20  # bytes, for small files whose numbers are all equal
ENTRY = 16  # bytes counted for an item of a list, tuple or dict; in a pickle it takes at least 2


class ContentLimit:
    """Counts the bytes of a file's content. Raises UserError above FLOOR + FACTOR * the file's size."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, path.stat().st_size
        self._left = FLOOR + FACTOR * self._size

    def check(self, count: int) -> None:
        """Raise UserError if `count` more bytes exceed the limit."""
        if count > self._left:
            file, limit = (f"{bytes_ / 1e6:.1f} MB" for bytes_ in (self._size, FLOOR + FACTOR * self._size))
            raise UserError(
                f"{self._path}: refused, the content of its {file} takes more than {limit} of memory; "
                "save the weights again, without compression"
            )

    def take(self, count: int) -> None:
        """Count bytes. Raises UserError above the limit."""
        self.check(count)
        self._left -= count

    def take_entries(self, count: int) -> None:
        """Count items of a list, tuple or dict. Raises UserError above the limit."""
        self.take(count * ENTRY)
