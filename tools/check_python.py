"""Exit with one line if this Python cannot run the project. `make` calls it before anything is installed.

Paddle 3.3.1 has wheels for CPython 3.10 to 3.13 on Linux (x86-64, glibc), macOS (arm64) and Windows (x86-64). The
syntax here is that of Python 3.6, so that an older Python shows the message instead of a SyntaxError.
"""

import ctypes
import importlib.util
import platform
import sys

VERSIONS = ((3, 10), (3, 13))
SYSTEMS = {("Linux", "x86_64"), ("Darwin", "arm64"), ("Windows", "AMD64")}


def problem():
    """Return what is missing and how to get it, or None."""
    version = sys.version_info[:2]
    name = "Python {}.{}".format(*version)
    system = (platform.system(), platform.machine())
    if system not in SYSTEMS or sys.maxsize < 2**32:
        return (
            "Paddle has no wheels for {} on {}; use 64-bit Linux or Windows on x86-64, or macOS on Apple silicon, "
            "or run in a container of such a system"
        ).format(*system)
    if system[0] == "Linux" and platform.libc_ver()[0] != "glibc":
        return "Paddle's wheels need glibc, which this Linux does not use; run in a container of Debian or Ubuntu"
    if not VERSIONS[0] <= version <= VERSIONS[1]:
        return f"Paddle has no wheels for {name}; install Python 3.10 to 3.13 and choose it: make PYTHON=python3.13 ..."
    if importlib.util.find_spec("ensurepip") is None:
        return f"{name} cannot create environments; install venv (Debian, Ubuntu: apt-get install python3-venv)"
    if system[0] == "Linux" and not loads("libgomp.so.1"):
        return "Paddle needs the system library libgomp.so.1; install it (Debian, Ubuntu: apt-get install libgomp1)"
    return None


def loads(library):
    """Return whether the system's loader finds a shared library."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    found = problem()
    sys.exit(found and f"error: {found}")
