"""Being asked to stop, by Ctrl-C or a scheduler: a run ends where it can be gone on with."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from ppdet_lite.core.errors import Stopped

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}  # a scheduler's wish, once met, is no failure


class StopRequest:
    """Notes the first SIGINT or SIGTERM while it is entered; a second one ends the process at once.

    Only the main thread can hear signals; entered in another one, it hears none. Nor does one that does not listen:
    of several processes each would stop at a step of its own, and wait for the others for ever.
    """

    def __init__(self, listens: bool = True) -> None:
        self.signal: signal.Signals | None = None
        self._listens = listens
        self._breaks_off = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        if self._listens and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def is_made(self) -> bool:
        """Whether the run is asked to stop."""
        return self.signal is not None

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Inside this block a request raises `Stopped` at once: what is done there can be done again."""
        self._breaks_off = True
        try:
            if self.is_made:
                raise self.error()
            yield
        finally:
            self._breaks_off = False

    def error(self) -> Stopped:
        """What ends the program, with the exit code that fits the signal."""
        return Stopped(f"stopped by {self.signal.name}", EXIT_CODES[self.signal])

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.is_made:
            os._exit(128 + number)
        self.signal = signal.Signals(number)
        if self._breaks_off:
            raise self.error()
