"""The oneDNN library that is installed with Paddle: loading it, the types of its functions, and its errors.

Every failure after loading is a `OneDnnError`. Names are those of oneDNN 3's dnnl.h, without "dnnl_".
"""

import ctypes
import functools
from ctypes import POINTER, byref, c_int, c_int64, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

import paddle

from ppdet_lite.core import runtime
from ppdet_lite.core.log import get_logger

MAJOR_VERSION = 3  # of the C interface; a library of another version is not used

_AMX = 0xFEF  # dnnl_cpu_isa_avx512_core_amx; later instruction sets contain its bits
_STATUSES = ("success", "out of memory", "invalid arguments", "unimplemented", "last implementation", "runtime error")
_failures: list[str] = []  # those of this process that were logged


class OneDnnError(RuntimeError):
    """oneDNN cannot compute an operation, or a tensor is not one that it can read."""


def load_library() -> ctypes.CDLL | None:
    """Return Paddle's oneDNN library, or None if it is not used."""
    return _load()[0]


def multiplies_bfloat16() -> bool:
    """Return whether oneDNN is in use and multiplies float32 tensors in bfloat16 on this processor: with AMX.

    On processors with only AVX512-BF16, oneDNN 3.6 would need tensors in bfloat16.
    """
    library = load_library()
    return library is not None and library.dnnl_get_effective_cpu_isa() & _AMX == _AMX


def description() -> str:
    """Return a log line: which library computes convolutions on a CPU and, if it is not oneDNN, why not."""
    return f"convolutions on a CPU: {_load()[1]}{', which can multiply in bfloat16 (AMX)' * multiplies_bfloat16()}"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:  # the library, and the text for the log
    if not runtime.is_enabled("onednn"):
        return None, f"Paddle's own ({runtime.SWITCH} is without onednn)"
    paths = sorted((Path(paddle.__file__).parent / "libs").glob("libdnnl.so*"))
    if not paths:
        return None, "Paddle's own (Paddle is installed without libdnnl.so)"
    try:
        dnnl = ctypes.CDLL(str(paths[0]))
        dnnl.dnnl_version.restype = POINTER(c_int)  # a structure whose first fields are major, minor, patch
        version = dnnl.dnnl_version()[:3]
        if version[0] != MAJOR_VERSION:
            return None, f"Paddle's own (its oneDNN is version {version[0]}, not {MAJOR_VERSION})"
        _declare_functions(dnnl)
    except (OSError, AttributeError) as error:  # the library, or a function of it, is missing
        warn_once(error)
        return None, f"Paddle's own (oneDNN cannot be loaded: {error})"
    return dnnl, "oneDNN " + ".".join(map(str, version))


def warn_once(error: Exception) -> None:
    """Log the first failure of oneDNN in this process. Later ones are not logged."""
    if not _failures:
        _failures.append(str(error))
        message = "convolutions that oneDNN cannot compute are computed by Paddle, more slowly, in this process: %s"
        get_logger().warning(message, error)


class CArgument(ctypes.Structure):
    """An argument of a primitive with its number (dnnl_exec_arg_t)."""

    _fields_ = (("number", c_int), ("memory", c_void_p))


def _declare_functions(dnnl: ctypes.CDLL) -> None:
    """Declare the types of all functions used here. Raises AttributeError if one is missing."""
    new, handle, sizes = POINTER(c_void_p), c_void_p, POINTER(c_int64)
    geometry = [sizes] * 4  # strides, dilations, padding before and after
    data, weights = [handle] * 3, [handle] * 4  # layouts of the tensors: x, weight, out; x, weight, bias, out
    convolution = "convolution_{}_primitive_desc_create"
    arguments = {
        "engine_create": [new, c_int, c_size_t],
        "stream_create": [new, handle, c_uint],
        "stream_wait": [handle],
        "primitive_attr_create": [new],
        "primitive_attr_set_scratchpad_mode": [handle, c_int],
        "primitive_attr_set_fpmath_mode": [handle, c_int],
        "get_effective_cpu_isa": [],
        "memory_desc_create_with_tag": [new, c_int, sizes, c_int, c_int],
        "memory_desc_create_with_strides": [new, c_int, sizes, c_int, sizes],
        "memory_desc_equal": [handle, handle],
        "memory_desc_get_size": [handle],
        "memory_create": [new, handle, handle, handle],
        "memory_get_memory_desc": [handle, new],
        "memory_set_data_handle": [handle, handle],
        "primitive_desc_query_md": [handle, c_int, c_int],
        convolution.format("forward"): [new, handle, c_int, c_int, *weights, *geometry, handle],
        convolution.format("backward_data"): [new, handle, c_int, *data, *geometry, handle, handle],
        convolution.format("backward_weights"): [new, handle, c_int, *weights, *geometry, handle, handle],
        "matmul_primitive_desc_create": [new, handle, *weights, handle],
        "reorder_primitive_desc_create": [new, *[handle] * 5],
        "primitive_create": [new, handle],
        "primitive_execute": [handle, handle, c_int, POINTER(CArgument)],
    }
    kinds = ("engine", "stream", "primitive_attr", "memory_desc", "memory", "primitive_desc", "primitive")
    for name, types in (arguments | {f"{kind}_destroy": [handle] for kind in kinds}).items():
        getattr(dnnl, f"dnnl_{name}").argtypes = types
    dnnl.dnnl_primitive_desc_query_md.restype = c_void_p
    dnnl.dnnl_memory_desc_get_size.restype = c_size_t


class Object:
    """Owns an object of the library, created by `dnnl_{kind}_{create}` or `dnnl_{create}_{kind}_create`."""

    def __init__(self, kind: str, create: str, *arguments: Any) -> None:
        self.handle = c_void_p()
        self._destroy = getattr(load_library(), f"dnnl_{kind}_destroy")
        values = [argument.handle if isinstance(argument, Object) else argument for argument in arguments]
        function = f"{kind}_{create}" if create.startswith("create") else f"{create}_{kind}_create"
        check(function, byref(self.handle), *values)

    def __del__(self) -> None:
        if self.handle:  # else its creation failed
            self._destroy(self.handle)


def check(function: str, *arguments: Any) -> None:
    """Call a function of the library; raise OneDnnError if it fails."""
    if status := getattr(load_library(), f"dnnl_{function}")(*arguments):
        reason = _STATUSES[status] if 0 < status < len(_STATUSES) else "unknown"
        raise OneDnnError(f"oneDNN: dnnl_{function} returned status {status} ({reason})")
