"""Being asked to stop, by Ctrl-C or a scheduler: a run ends where it can be gone on with."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from ppdet_lite.core.errors import Stopped

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}  # a scheduler's wish, once met, is no failure
SAME_REQUEST = 5.0  # seconds within which Paddle's launcher says it three times


class StopRequest:
    """Notes the first SIGINT or SIGTERM while it is entered; a second one ends the process at once.

    Only the main thread can hear signals; entered in another one, it hears none.

    alone: whether this process is the whole run. Of several, each notes what it has `heard`; the request is made on all
    of them once they `agree`, at the same step, else one would wait for another that has left.
    """

    def __init__(self, alone: bool = True) -> None:
        self.heard: signal.Signals | None = None
        self.signal: signal.Signals | None = None
        self._alone, self._first = alone, 0.0
        self._breaks_off = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def is_made(self) -> bool:
        """Whether the run is asked to stop."""
        return self.signal is not None

    def agree(self, heard: Sequence[signal.Signals | None]) -> None:
        """Make the request that any of the processes has heard."""
        self.signal = self.signal or next((number for number in heard if number is not None), None)

    def check(self) -> None:
        """Raise `Stopped` if this process has heard a request, where the others are told of what it raises."""
        if self.heard is not None:
            raise _stopped(self.heard)

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Inside this block a request raises `Stopped` at once: what is done there can be done again.

        Of several processes, only one that is made before raises it.
        """
        self._breaks_off = True
        try:
            if self.is_made:
                raise _stopped(self.signal)
            yield
        finally:
            self._breaks_off = False

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.heard is None:
            self.heard, self._first = signal.Signals(number), time.monotonic()
        elif self._alone or time.monotonic() - self._first > SAME_REQUEST:
            os._exit(128 + number)
        if self._alone:
            self.signal = self.heard
            if self._breaks_off:
                raise _stopped(self.signal)


def _stopped(number: signal.Signals) -> Stopped:
    """What ends the program, with the exit code that fits the signal."""
    return Stopped(f"stopped by {number.name}", EXIT_CODES[number])
