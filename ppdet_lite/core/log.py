"""Log lines, on the standard output and in a run's train.log."""

import contextlib
import logging
import math
import os
import sys
import traceback
from pathlib import Path
from typing import TextIO

from ppdet_lite.core.errors import RunFailed, UserError

ROOT = "ppdet_lite"
FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")


class _Stdout(logging.Handler):
    """Writes to the standard output of the moment, above a progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print_above_bars(self.format(record), sys.stdout)
        except BrokenPipeError:  # who read it has gone, as `| head` does: the program goes on, train.log has all lines
            drop_output()
        except (OSError, ValueError):  # logging's own rule is not to stop the program
            self.handleError(record)


class _LogFile(logging.FileHandler):
    """Appends to a file. A full disk raises UserError: the run that is logged could not be saved either."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        reason = f"the log cannot be written: {error.strerror}; free space or choose another output"
        raise UserError(f"{self.baseFilename}: {reason}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of lines that could not be written, which has been told
            super().close()


def get_logger(name: str = ROOT) -> logging.Logger:
    """The package's logger or a child of it (a bare `x` means `ppdet_lite.x`).

    Lines go to stdout, or to the root logger's handlers where an application has set some.
    """
    root = logging.getLogger(ROOT)
    if not root.handlers and not logging.getLogger().handlers:
        _add(root, _Stdout())
        root.setLevel(logging.INFO)
    return logging.getLogger(name if name == ROOT or name.startswith(f"{ROOT}.") else f"{ROOT}.{name}")


def configure(rank: int = 0, file: Path | None = None) -> logging.Logger:
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
            _add(root, _LogFile(file, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{file}: the log cannot be written: {error.strerror}; choose another output") from error
    return root


def note_in_file(error: Exception) -> None:
    """Write an error that the command line shows by itself into the log file alone, where there is one.

    One that nobody foresaw has its traceback. That it cannot be written is not told: the error may say so already.
    """
    foreseen = isinstance(error, (UserError, RunFailed))
    text = str(error) if foreseen else "".join(traceback.format_exception(error)).rstrip()
    with contextlib.suppress(UserError):
        _write_in_file(logging.ERROR, text)


def line_in_file(line: str) -> None:
    """Write a line into the log file alone, where there is one: what the console shows in another way."""
    _write_in_file(logging.INFO, line)


def format_eta(seconds: float) -> str:
    """Seconds as `h:mm:ss`, or `2 d 3:04:05` from a day on; `--` when they are not known (NaN, infinite, negative)."""
    if not math.isfinite(seconds) or seconds < 0:
        return "--"
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days} d {clock}" if days else clock


def _write_in_file(level: int, text: str) -> None:
    for handler in logging.getLogger(ROOT).handlers:
        if isinstance(handler, _LogFile):
            handler.emit(logging.LogRecord(ROOT, level, "", 0, text, None, None))


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(FORMAT)
    logger.addHandler(handler)


def drop_output() -> None:
    """Have what is still written to the standard output go nowhere: nobody reads it any more."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def print_above_bars(line: str, stream: TextIO) -> None:
    """Print a line at once, above a progress bar where one is shown."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=stream)
    else:
        print(line, file=stream)
    stream.flush()
