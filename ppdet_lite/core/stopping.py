"""Stopping on Ctrl-C or a scheduler's signal, at a point from which the run can be resumed."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from ppdet_lite.core.errors import Stopped

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0}  # stopping for a scheduler is not a failure
SAME_REQUEST = 5.0  # seconds in which signals count as one request: Paddle's launcher sends SIGTERM three times


class StopRequest:
    """A context manager that records the first SIGINT or SIGTERM; a second one ends the process at once.

    Only the main thread can receive signals; entered in another thread, the context manager does nothing.

    received: the first signal of this process, or None; signal: the one for which all processes stop, or None.
    single_process: whether the run has one process. With several, signals within SAME_REQUEST seconds count as one, and
        `agree` makes the request in all processes at the same step: otherwise one would wait for another that stopped.
    """

    def __init__(self, single_process: bool = True) -> None:
        self.received: signal.Signals | None = None
        self.signal: signal.Signals | None = None
        self._single_process, self._received_at = single_process, 0.0
        self._is_interruptible = False
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._receive) for number in EXIT_CODES}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    @property
    def is_requested(self) -> bool:
        """Whether the run has to stop."""
        return self.signal is not None

    def agree(self, received: Sequence[signal.Signals | None]) -> None:
        """Request the stop if any process received a signal; `received` has one entry per process."""
        self.signal = self.signal or next((number for number in received if number is not None), None)

    def raise_if_received(self) -> None:
        """Raise `Stopped` if this process received a signal. Call it only where exceptions reach all ranks."""
        if self.received is not None:
            raise _stopped(self.received)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise `Stopped` at once on a request inside this block, whose work can be repeated.

        With several processes, only a request made before the block raises it, so that all processes stop together.
        """
        self._is_interruptible = True
        try:
            if self.signal is not None:
                raise _stopped(self.signal)
            yield
        finally:
            self._is_interruptible = False

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        elif self._single_process or time.monotonic() - self._received_at > SAME_REQUEST:
            os._exit(128 + number)
        if self._single_process:
            self.signal = self.received
            if self._is_interruptible:
                raise _stopped(self.signal)


def _stopped(number: signal.Signals) -> Stopped:
    """Return the exception that ends the program with the signal's exit code."""
    return Stopped(f"stopped by {number.name}", EXIT_CODES[number])
