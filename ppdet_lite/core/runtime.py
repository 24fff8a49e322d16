"""Tune the process for Paddle on a CPU, before paddle is imported.

Four things, each of which a user may set himself (then it is left alone) or choose with the variable
PPDET_LITE_RUNTIME = "off" or a comma list of them:

- threads: OMP_NUM_THREADS = usable cores, shared among the processes of a launch. Paddle itself takes one thread.
- malloc:  glibc keeps freed memory instead of giving it back, which spares the page faults of every large tensor.
- mkl:     MKL_DEBUG_CPU_TYPE=5 on AMD, where the bundled MKL otherwise takes its slow path.
- onednn:  convolutions of training by the oneDNN beside paddle (ops/cpu/onednn.py); it is only switched here.
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

# malloc.h: the option's number, and the values to try in turn. glibc before 2.35 takes at most 32 MiB as the first.
MALLOC_OPTIONS = {
    "M_MMAP_THRESHOLD": (-3, (1 << 30, 1 << 25)),
    "M_TRIM_THRESHOLD": (-1, (2**31 - 1,)),
    "M_TOP_PAD": (-2, (64 << 20,)),
}


class Setting(NamedTuple):
    """One decision about the process: what was set to which value (None: left as it was), and why."""

    name: str
    value: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.name}{' left alone' if self.value is None else '=' + self.value} ({self.reason})"


_applied: tuple[Setting, ...] = ()


def prepare(environ: MutableMapping[str, str] = os.environ) -> tuple[Setting, ...]:
    """Set threads, malloc and MKL for this process and return every decision; `import ppdet_lite` calls it.

    Nothing that the user has set is overwritten. If paddle has been imported already, its threads and its MKL are
    settled: a RuntimeWarning says so. Raises UserError on an unknown word in PPDET_LITE_RUNTIME.
    """
    global _applied
    parts = _chosen(environ)
    warnings.filterwarnings("ignore", message="No ccache found")  # Paddle compiles nothing for us
    warnings.filterwarnings("ignore", message="When training, we now always track")  # every batch norm says so
    decisions: list[Setting] = []
    if "threads" in parts:
        decisions.append(_set_threads(environ))
    if "mkl" in parts:
        decisions.append(_set_mkl(environ))
    if "malloc" in parts:
        decisions += _set_malloc(environ)
    _applied = tuple(decisions)
    return _applied


def applied() -> tuple[Setting, ...]:
    """What the last `prepare` decided, for the training log and tools/env_check.py."""
    return _applied


def chosen(part: str, environ: MutableMapping[str, str] = os.environ) -> bool:
    """Whether the user leaves a part of this on. Raises UserError on an unknown word in PPDET_LITE_RUNTIME."""
    return part in _chosen(environ)


def usable_cores() -> int:
    """Cores this process may use: its CPU affinity, cut by a container's CPU quota (rounded up)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, math.ceil(_cpu_quota() or cores))


def peak_rss_mb() -> float:
    """The largest memory that this process has had, in MiB; NaN where no system call tells (not POSIX)."""
    try:
        import resource
    except ImportError:
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB on Linux


def cpu_info() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo (`vendor_id`, `model name`, ...); empty where there is none."""
    text = _read("/proc/cpuinfo").split("\n\n")[0]
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """Import paddle inside this block without its advice against more than one thread; other lines pass."""
    held = io.StringIO()
    try:
        with contextlib.redirect_stderr(held):
            yield
    finally:
        noise = ("WARNING: OMP_NUM_THREADS set to", "PLEASE USE OMP_NUM_THREADS WISELY")
        sys.stderr.writelines(line for line in held.getvalue().splitlines(keepends=True) if not line.startswith(noise))


def _chosen(environ: MutableMapping[str, str]) -> set[str]:
    words = {word.strip().lower() for word in environ.get(SWITCH, "").split(",")} - {""}
    if not words:
        return set(PARTS)
    if words == {"off"}:
        return set()
    if unknown := sorted(words - set(PARTS)):
        raise UserError(
            f"{SWITCH}={environ[SWITCH]}: {unknown[0]!r} is not known; say off or some of {','.join(PARTS)}"
        )
    return words


def _set_threads(environ: MutableMapping[str, str]) -> Setting:
    name = "OMP_NUM_THREADS"
    processes = max(_number(environ, "PADDLE_LOCAL_SIZE") or _number(environ, "PADDLE_TRAINERS_NUM"), 1)
    # Importing paddle leaves a 1 in the environment: here, or in the launcher whose environment we inherit.
    paddles_own = environ.get(name) == "1" and (processes > 1 or _too_late())
    if environ.get(name) and not paddles_own:
        return Setting(name, None, f"the user has set {environ[name]}")
    if _too_late():
        return _lost(name)
    cores = usable_cores()
    environ[name] = str(max(cores // processes, 1))
    return Setting(name, environ[name], f"usable cores: {cores}" + (f", processes: {processes}" * (processes > 1)))


def _set_mkl(environ: MutableMapping[str, str]) -> Setting:
    name = "MKL_DEBUG_CPU_TYPE"
    if environ.get(name):
        return Setting(name, None, f"the user has set {environ[name]}")
    if cpu_info().get("vendor_id") != "AuthenticAMD":
        return Setting(name, None, "of use on AMD processors only")
    if _too_late():
        return _lost(name)
    environ[name] = "5"
    return Setting(name, "5", "an AMD processor")


def _set_malloc(environ: MutableMapping[str, str]) -> list[Setting]:
    users = [name for name in MALLOC_VARIABLES if environ.get(name)]
    users += ["GLIBC_TUNABLES"] * ("glibc.malloc" in environ.get("GLIBC_TUNABLES", ""))
    if users:
        return [Setting("malloc", None, f"the user has set {users[0]}")]
    if not _is_glibc():
        return [Setting("malloc", None, "not the GNU C library")]
    mallopt = ctypes.CDLL(None).mallopt
    settings = []
    for name, (number, values) in MALLOC_OPTIONS.items():
        taken = next((value for value in values if mallopt(number, value) == 1), None)
        value, reason = (None, "refused") if taken is None else (str(taken), "fewer page faults")
        settings.append(Setting(name, value, reason))
    return settings


def _too_late() -> bool:
    return "paddle" in sys.modules


def _lost(name: str) -> Setting:
    reason = "paddle was imported first; import ppdet_lite before it"
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
    """Cores granted by the control group, version 2 or 1; None: no limit."""
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
