"""What a run tells: log lines, metrics.jsonl and the progress of the training loop."""

import json
import logging
import math
import statistics
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.files import atomic_writer

ROOT = "ppdet_lite"
FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")


class _Stdout(logging.Handler):
    """Writes to the standard output of the moment, above a progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _print_above_bars(self.format(record), sys.stdout)
        except (OSError, ValueError):  # a closed pipe: logging's own rule is not to stop the program
            self.handleError(record)


def get_logger(name: str = ROOT) -> logging.Logger:
    """The package's logger or a child of it (a bare `x` means `ppdet_lite.x`).

    Lines go to stdout, or to the root logger's handlers where an application has set some.
    """
    root = logging.getLogger(ROOT)
    if not root.handlers and not logging.getLogger().handlers:
        _add(root, _Stdout())
        root.setLevel(logging.INFO)
    return logging.getLogger(name if name == ROOT or name.startswith(f"{ROOT}.") else f"{ROOT}.{name}")


def setup(rank: int = 0, file: Path | None = None) -> logging.Logger:
    """Configure the package's logger for a command-line tool: stdout and, appended to, `file`.

    Processes of a rank above 0 log warnings only, and to stdout only. May be called again; then it starts afresh.
    Raises UserError when the file cannot be written.
    """
    root = logging.getLogger(ROOT)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.propagate = False  # other libraries configure the root logger: every line would come twice
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    _add(root, _Stdout())
    if file is not None and rank == 0:
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            _add(root, logging.FileHandler(file, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{file}: the log cannot be written: {error.strerror}; choose another output") from error
    return root


class MetricsWriter:
    """Appends one JSON object per line to metrics.jsonl; each line is flushed."""

    def __init__(self, path: Path, resume_iteration: int | None = None) -> None:
        """Open the file; a torn last line is dropped, and on resume every line beyond `resume_iteration`.

        Raises UserError when the file cannot be written or a line of it is not an object with an iteration.
        """
        self._path = Path(path)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._tidy(resume_iteration)
            self._file: TextIO = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._failure(error) from error

    def write(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Append a line; numpy scalars become plain numbers, NaN and infinities null.

        Raises UserError on a full disk.
        """
        line = json.dumps(_plain({"iteration": iteration, **values}), allow_nan=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _tidy(self, resume_iteration: int | None) -> None:
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
            raise UserError(f"{self._path}:{number}: no JSON object with an iteration; remove that line") from error

    def _failure(self, error: OSError) -> UserError:
        return UserError(f"{self._path}: cannot be written: {error.strerror}; free space or choose another output")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a metrics.jsonl in order, leaving out a torn last line; UserError when it cannot be read."""
    try:
        lines = Path(path).read_bytes().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith(b"\n")]
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: a line of it is no JSON ({error}); remove that line") from error


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


def format_eta(seconds: float) -> str:
    """Seconds as `h:mm:ss`, or `2 d 3:04:05` from a day on; `--` when they are not known (NaN, infinite, negative)."""
    if not math.isfinite(seconds) or seconds < 0:
        return "--"
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


class Progress:
    """Shows the training loop: a bar on a terminal, else a plain line every `log_every` iterations.

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
        self, iteration: int, losses: Mapping[str, float], lr: float, seconds: float, data_seconds: float
    ) -> None:
        """Tell that `iteration` is done: its losses, learning rate, seconds in all and seconds of waiting for data."""
        self._losses.update({"loss": sum(losses.values()), **losses})
        self._times.update({"seconds": seconds, "data": data_seconds})
        if self._bar is not None:
            self._bar.set_description_str(self._text(iteration, lr), refresh=False)
            self._bar.update(iteration - self._bar.n)
        elif iteration % self._log_every == 0 or iteration in (self._start + 5, self._total):
            width = len(str(self._total))
            self.write(f"iter {iteration:{width}}/{self._total}  {self._text(iteration, lr)}")

    def write(self, line: str) -> None:
        """Print a line above the bar, or through the package's logger where there is no bar and no own stream."""
        if self._bar is None and self._stream is None:
            get_logger().info("%s", line)
        else:
            _print_above_bars(line, self._stream or sys.stdout)

    def close(self) -> None:
        """Leave the bar as it is and end its line."""
        if self._bar is not None:
            self._bar.close()

    def _text(self, iteration: int, lr: float) -> str:
        times = self._times.medians()
        losses = "  ".join(f"{name} {value:.4g}" for name, value in self._losses.medians().items())
        eta = format_eta((self._total - iteration) * times["seconds"])
        return f"eta {eta}  lr {lr:.3g}  {losses}  {times['seconds']:.3f} s/iter (data {times['data']:.3f})"


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(FORMAT)
    logger.addHandler(handler)


def _print_above_bars(line: str, stream: TextIO) -> None:
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=stream)
    else:
        print(line, file=stream)
    stream.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # numpy scalars and 0-d arrays
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
