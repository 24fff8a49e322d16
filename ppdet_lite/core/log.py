"""Logging to the standard output and to a run's train.log."""

import contextlib
import logging
import math
import os
import sys
import traceback
from pathlib import Path
from typing import TextIO

from ppdet_lite.core.errors import RunFailed, UserError

PACKAGE = "ppdet_lite"
FORMAT = logging.Formatter("%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")


class _Stdout(logging.Handler):
    """Writes to the current `sys.stdout`, above a progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            encoding = sys.stdout.encoding or "utf-8"
            line = self.format(record).encode(encoding, "backslashreplace").decode(encoding)
            print_above_bars(line, sys.stdout)
        except BrokenPipeError:  # closed by its reader, as `| head` does: continue, train.log has all lines
            discard_stdout()
        except (OSError, ValueError):  # logging must not stop the program
            self.handleError(record)


class _LogFile(logging.FileHandler):
    """Appends to a file. Raises UserError on a full disk, where the run could not save its checkpoints either."""

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        reason = f"the log cannot be written: {error.strerror}; free space or choose another output"
        raise UserError(f"{self.baseFilename}: {reason}") from error

    def close(self) -> None:
        with contextlib.suppress(OSError):  # lines that could not be written: reported by handleError
            super().close()


def get_logger() -> logging.Logger:
    """Return the package's logger.

    Lines go to stdout, or to the root logger's handlers if the application has set any.
    """
    root = logging.getLogger(PACKAGE)
    if not root.handlers and not logging.getLogger().handlers:
        _add(root, _Stdout())
        root.setLevel(logging.INFO)
    return root


def configure(rank: int = 0, file: Path | None = None) -> logging.Logger:
    """Configure the package's logger for a command-line tool: log to stdout and append to `file`.

    Ranks above 0 log warnings only, to stdout only. Another call replaces the configuration. Raises UserError if the
    file cannot be written.
    """
    root = logging.getLogger(PACKAGE)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.propagate = False  # other libraries configure the root logger: every line would appear twice
    root.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    _add(root, _Stdout())
    if file is not None and rank == 0:
        try:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            _add(root, _LogFile(file, encoding="utf-8", errors="backslashreplace"))
        except OSError as error:
            raise UserError(f"{file}: the log cannot be written: {error.strerror}; choose another output") from error
    return root


def log_error_to_file(error: Exception) -> None:
    """Write an error to the log file only, if there is one; the command line prints it by itself.

    Unexpected errors include their traceback. A failure to write is ignored: it may be `error` itself.
    """
    expected = isinstance(error, (UserError, RunFailed))
    text = str(error) if expected else "".join(traceback.format_exception(error)).rstrip()
    with contextlib.suppress(UserError):
        _write_to_file(logging.ERROR, text)


def log_line_to_file(line: str) -> None:
    """Write a line to the log file only, if there is one: the console shows the same in another form."""
    _write_to_file(logging.INFO, line)


def format_eta(seconds: float) -> str:
    """Format seconds as `h:mm:ss`, from one day as `2 d 3:04:05`, and unknown (NaN, infinite, negative) as `--`."""
    if not math.isfinite(seconds) or seconds < 0:
        return "--"
    days, seconds = divmod(round(seconds), 86400)
    clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{days} d {clock}" if days else clock


def _write_to_file(level: int, text: str) -> None:
    for handler in logging.getLogger(PACKAGE).handlers:
        if isinstance(handler, _LogFile):
            handler.emit(logging.LogRecord(PACKAGE, level, "", 0, text, None, None))


def _add(logger: logging.Logger, handler: logging.Handler) -> None:
    handler.setFormatter(FORMAT)
    logger.addHandler(handler)


def discard_stdout() -> None:
    """Redirect the standard output to the null device, after its reader has closed it."""
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), sys.stdout.fileno())


def print_above_bars(line: str, stream: TextIO) -> None:
    """Print a line and flush, above a progress bar if one is shown."""
    if "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(line, file=stream)
    else:
        print(line, file=stream)
    stream.flush()
