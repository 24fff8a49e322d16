"""The progress of the training loop as a person sees it: a bar on a terminal, else lines; lines in the log file."""

import math
import statistics
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TextIO

from ppdet_lite.core.log import format_eta, get_logger, line_in_file, print_above_bars


class SmoothedMeters:
    """The last `window` values of each named number."""

    def __init__(self, window: int = 20) -> None:
        self._window = window
        self._values: dict[str, deque[float]] = {}

    def update(self, values: Mapping[str, float]) -> None:
        """Add one value per name; names may come and go."""
        for name, value in values.items():
            self._values.setdefault(name, deque(maxlen=self._window)).append(float(value))

    def means(self) -> dict[str, float]:
        """Mean over the window, by name; NaN when a value in it is."""
        return {name: sum(values) / len(values) for name, values in self._values.items()}

    def medians(self) -> dict[str, float]:
        """Median over the window, by name; NaN when a value in it is."""
        return {
            name: math.nan if any(map(math.isnan, values)) else statistics.median(values)
            for name, values in self._values.items()
        }


class Progress:
    """Shows the training loop: a line every `log_every` iterations, which on a terminal only the log has, under a bar.

    Iterations count from 1 to `total`; a resumed loop has done `start` of them. Losses and seconds are medians over
    the last `window` iterations. Plain lines also come at the fifth step, when the ETA means something, and at the end.
    """

    def __init__(
        self, total: int, start: int = 0, log_every: int = 20, window: int = 20, stream: TextIO | None = None
    ) -> None:
        self._total, self._start, self._log_every = total, start, log_every
        self._losses, self._times = SmoothedMeters(window), SmoothedMeters(window)
        self._stream = stream  # None: the standard output of the moment
        self._bar = None
        if (stream or sys.stdout).isatty():
            from tqdm import tqdm

            layout = "{n_fmt}/{total_fmt} |{bar:10}| {desc}"
            self._bar = tqdm(
                total=total, initial=start, file=stream or sys.stdout, bar_format=layout, dynamic_ncols=True
            )

    def update(
        self,
        iteration: int,
        losses: Mapping[str, float],
        lr: float,
        seconds: float,
        data_seconds: float,
        memory_mb: Sequence[float],
    ) -> None:
        """Tell that `iteration` is done: its losses, learning rate, seconds in all and seconds of waiting for data.

        memory_mb: the most memory in use so far, of each rank.
        """
        self._losses.update({"loss": sum(losses.values()), **losses})
        self._times.update({"seconds": seconds, "data": data_seconds})
        is_line_due = iteration % self._log_every == 0 or iteration in (self._start + 5, self._total)
        if self._bar is None and not is_line_due:
            return
        text = self._text(iteration, lr, memory_mb)
        line = f"iter {iteration:{len(str(self._total))}}/{self._total}  {text}"
        if self._bar is None:
            self.write(line)
            return
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(iteration - self._bar.n)
        if is_line_due:
            line_in_file(line)

    def write(self, line: str) -> None:
        """Print a line above the bar, or through the package's logger where there is no bar and no own stream."""
        if self._bar is None and self._stream is None:
            get_logger().info("%s", line)
        else:
            print_above_bars(line, self._stream or sys.stdout)

    def close(self) -> None:
        """Leave the bar as it is and end its line."""
        if self._bar is not None:
            self._bar.close()

    def _text(self, iteration: int, lr: float, memory_mb: Sequence[float]) -> str:
        times = self._times.medians()
        losses = "  ".join(f"{name} {value:.4g}" for name, value in self._losses.medians().items())
        eta = format_eta((self._total - iteration) * times["seconds"])
        pace = f"{times['seconds']:.3f} s/iter (data {times['data']:.3f})"
        memory = "+".join(f"{mb / 1024:.2f}" for mb in memory_mb)
        return f"eta {eta}  lr {lr:.3g}  {losses}  {pace}  {memory} GiB"
