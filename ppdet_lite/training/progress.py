"""The progress display of training: a bar on a terminal, otherwise lines; the log file always has lines."""

import math
import statistics
import sys
from collections import deque
from collections.abc import Mapping
from typing import TextIO

from ppdet_lite.core.log import format_eta, get_logger, log_line_to_file, print_above_bars
from ppdet_lite.training.sinks import Sink, StepRecord

WINDOW = 20  # number of iterations whose median is shown


class SmoothedMeters:
    """The last WINDOW values of each named number."""

    def __init__(self) -> None:
        self._values: dict[str, deque[float]] = {}

    def update(self, values: Mapping[str, float]) -> None:
        """Add one value per name. Names may differ between calls."""
        for name, value in values.items():
            self._values.setdefault(name, deque(maxlen=WINDOW)).append(float(value))

    def medians(self) -> dict[str, float]:
        """Return the median over the window by name, NaN if one of the values is NaN."""
        return {
            name: math.nan if any(map(math.isnan, values)) else statistics.median(values)
            for name, values in self._values.items()
        }


class Progress(Sink):
    """Shows a line every `log_every` iterations. On a terminal there is a bar, and the lines go to the log file only.

    Iterations count from 1 to `total`; a resumed run begins after `start`. Losses and seconds are medians over the last
    WINDOW iterations. A line is also shown after the fifth step, when the ETA becomes useful, and at the end.
    """

    def __init__(self, total: int, start: int = 0, log_every: int = 20, stream: TextIO | None = None) -> None:
        self._total, self._start, self._log_every = total, start, log_every
        self._losses, self._times = SmoothedMeters(), SmoothedMeters()
        self._stream = stream  # None: write through the logger
        self._bar = None
        if (stream or sys.stdout).isatty():
            from tqdm import tqdm

            layout = "{n_fmt}/{total_fmt} |{bar:10}| {desc}"
            self._bar = tqdm(
                total=total, initial=start, file=stream or sys.stdout, bar_format=layout, dynamic_ncols=True
            )

    def step(self, record: StepRecord) -> None:
        """Show an iteration."""
        iteration = record.iteration
        self._losses.update({"loss": sum(record.losses.values()), **record.losses})
        self._times.update({"seconds": record.seconds, "data": record.data_seconds})
        is_line_due = iteration % self._log_every == 0 or iteration in (self._start + 5, self._total)
        if self._bar is None and not is_line_due:
            return
        text = self._text(record)
        line = f"iter {iteration:{len(str(self._total))}}/{self._total}  {text}"
        if self._bar is None:
            self._write(line)
            return
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(iteration - self._bar.n)
        if is_line_due:
            log_line_to_file(line)

    def _write(self, line: str) -> None:
        """Print a line to the given stream, or through the package's logger."""
        if self._stream is None:
            get_logger().info("%s", line)
        else:
            print_above_bars(line, self._stream)

    def close(self) -> None:
        """Leave the bar on the terminal and end its line."""
        if self._bar is not None:
            self._bar.close()

    def _text(self, record: StepRecord) -> str:
        times = self._times.medians()
        losses = "  ".join(f"{name} {value:.4g}" for name, value in self._losses.medians().items())
        eta = format_eta((self._total - record.iteration) * times["seconds"])
        pace = f"{times['seconds']:.3f} s/iter (data {times['data']:.3f})"
        memory = "+".join(f"{mb / 1024:.2f}" for mb in record.memory_mb)
        return f"eta {eta}  lr {record.lr:.3g}  {losses}  {pace}  {memory} GiB"
