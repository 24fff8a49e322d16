"""Configure the process for Paddle on a CPU, before paddle is imported.

The configuration has four parts. The environment variable PPDET_LITE_RUNTIME selects them: "off", or a comma-separated
list (default: all). A setting that the user has made in the environment is left unchanged.

- threads: OMP_NUM_THREADS = usable cores, divided among the processes of a launch. Paddle's default is one thread.
- malloc:  glibc keeps freed memory instead of returning it to the system, which avoids page faults for large tensors.
- mkl:     the MKL that ships with paddle: MKL_DEBUG_CPU_TYPE=5 on AMD processors, where it otherwise uses slow code;
           RoIAlign, deformable layers and gradient norms by its functions (see ops/cpu/mkl.py).
- onednn:  training convolutions by the oneDNN library that ships with paddle (see ops/cpu/onednn_library.py).
"""

import contextlib
import ctypes
import io
import math
import os
import sys
import warnings
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import NamedTuple

from ppdet_lite.core.errors import UserError

SWITCH = "PPDET_LITE_RUNTIME"
PARTS = ("threads", "malloc", "mkl", "onednn")
MALLOC_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")

# mallopt option: its number, values to try in order. glibc before 2.35 accepts at most 32 MiB as the mmap threshold.
MALLOC_OPTIONS = {
    "M_MMAP_THRESHOLD": (-3, (1 << 30, 1 << 25)),
    "M_TRIM_THRESHOLD": (-1, (2**31 - 1,)),
    "M_TOP_PAD": (-2, (64 << 20,)),
}


class Setting(NamedTuple):
    """A variable or mallopt option, its value (None: left unchanged) and the reason for the value."""

    name: str
    value: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.name}{' left unchanged' if self.value is None else '=' + self.value} ({self.reason})"


_applied: tuple[Setting, ...] = ()


def prepare(environ: MutableMapping[str, str] = os.environ) -> tuple[Setting, ...]:
    """Apply the parts threads, mkl and malloc to this process; return the settings. `import ppdet_lite` calls this.

    Values set by the user are kept. Warns with RuntimeWarning if paddle is already imported, since its threads and its
    MKL cannot be changed then. Raises UserError for an unknown word in PPDET_LITE_RUNTIME.
    """
    global _applied
    parts = _enabled_parts(environ)
    warnings.filterwarnings("ignore", message="No ccache found")  # irrelevant: no extension is compiled
    warnings.filterwarnings("ignore", message="When training, we now always track")  # by each batch norm
    settings: list[Setting] = []
    if "threads" in parts:
        settings.append(_set_threads(environ))
    if "mkl" in parts:
        settings.append(_set_mkl(environ))
    if "malloc" in parts:
        settings += _set_malloc(environ)
    _applied = tuple(settings)
    return _applied


def applied_settings() -> tuple[Setting, ...]:
    """Return the settings made by the last `prepare`, for the training log and ppdet-lite env-check."""
    return _applied


def is_enabled(part: str) -> bool:
    """Return whether PPDET_LITE_RUNTIME enables one of PARTS. Raises UserError for an unknown word in the variable."""
    return part in _enabled_parts(os.environ)


def usable_cores() -> int:
    """Return the number of cores in the CPU affinity, limited by the container's CPU quota (rounded up)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, math.ceil(_cpu_quota() or cores))


def peak_rss_mb() -> float:
    """Return the peak resident memory of this process in MiB, or NaN on systems that do not report it (not POSIX)."""
    try:
        import resource
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux


def cpu_info() -> dict[str, str]:
    """Return the first processor's fields of /proc/cpuinfo (`vendor_id`, `model name`, ...); empty without the file."""
    text = _read("/proc/cpuinfo").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Suppress paddle's warning about more than one thread while it is imported in this block; pass other lines on."""
    lines = io.StringIO()
    try:
        with contextlib.redirect_stderr(lines):
            yield
    finally:
        noise = ("WARNING: OMP_NUM_THREADS set to", "PLEASE USE OMP_NUM_THREADS WISELY")
        sys.stderr.writelines(line for line in lines.getvalue().splitlines(True) if not line.startswith(noise))


def _enabled_parts(environ: MutableMapping[str, str]) -> set[str]:
    words = {word.strip().lower() for word in environ.get(SWITCH, "").split(",")} - {""}
    if not words:
        return set(PARTS)
    if words == {"off"}:
        return set()
    if unknown := sorted(words - set(PARTS)):
        raise UserError(
            f"{SWITCH}={environ[SWITCH]}: unknown value {unknown[0]!r}; use off, or any of {','.join(PARTS)}"
        )
    return words


def _set_threads(environ: MutableMapping[str, str]) -> Setting:
    name = "OMP_NUM_THREADS"
    processes = max(_number(environ, "PADDLE_LOCAL_SIZE") or _number(environ, "PADDLE_TRAINERS_NUM"), 1)
    # Importing paddle sets 1 in the environment: in this process, or in the launcher whose environment is inherited.
    set_by_paddle = environ.get(name) == "1" and (processes > 1 or _paddle_is_imported())
    if environ.get(name) and not set_by_paddle:
        return Setting(name, None, f"the user has set {environ[name]}")
    if _paddle_is_imported():
        return _report_too_late(name)
    cores = usable_cores()
    environ[name] = str(max(cores // processes, 1))
    return Setting(name, environ[name], f"usable cores: {cores}" + (f", processes: {processes}" * (processes > 1)))


def _set_mkl(environ: MutableMapping[str, str]) -> Setting:
    name = "MKL_DEBUG_CPU_TYPE"
    if environ.get(name):
        return Setting(name, None, f"the user has set {environ[name]}")
    if cpu_info().get("vendor_id") != "AuthenticAMD":
        return Setting(name, None, "for AMD processors only")
    if _paddle_is_imported():
        return _report_too_late(name)
    environ[name] = "5"
    return Setting(name, "5", "an AMD processor")


def _set_malloc(environ: MutableMapping[str, str]) -> list[Setting]:
    set_by_user = [name for name in MALLOC_VARIABLES if environ.get(name)]
    if "glibc.malloc" in environ.get("GLIBC_TUNABLES", ""):
        set_by_user.append("GLIBC_TUNABLES")
    if set_by_user:
        return [Setting("malloc", None, f"the user has set {set_by_user[0]}")]
    if not _is_glibc():
        return [Setting("malloc", None, "not the GNU C library")]
    mallopt = ctypes.CDLL(None).mallopt
    settings = []
    for name, (number, values) in MALLOC_OPTIONS.items():
        accepted = next((value for value in values if mallopt(number, value) == 1), None)
        value, reason = (None, "refused by glibc") if accepted is None else (str(accepted), "fewer page faults")
        settings.append(Setting(name, value, reason))
    return settings


def _paddle_is_imported() -> bool:
    return "paddle" in sys.modules


def _report_too_late(name: str) -> Setting:
    reason = "paddle is already imported; import ppdet_lite before it"
    warnings.warn(f"{name} is not set: {reason}", RuntimeWarning, stacklevel=4)
    return Setting(name, None, reason)


def _is_glibc() -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):
        return False


def _cpu_quota() -> float | None:
    """Return the cores granted by the control group (version 2 or 1), or None without a limit."""
    limit = _read("/sys/fs/cgroup/cpu.max").split()
    if not limit:
        limit = [_read(f"/sys/fs/cgroup/cpu/cpu.cfs_{part}_us").strip() for part in ("quota", "period")]
    return int(limit[0]) / int(limit[1]) if len(limit) == 2 and all(map(str.isdigit, limit)) else None


def _number(environ: MutableMapping[str, str], name: str) -> int:
    return int(environ[name]) if environ.get(name, "").isdigit() else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
