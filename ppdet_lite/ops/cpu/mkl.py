"""Functions of the MKL library that is installed with Paddle, called through its C interface.

Paddle uses MKL for matrix products and does not call these functions. Not every build of Paddle has MKL.
"""

import ctypes
import functools
from ctypes import c_double, c_float, c_int, c_void_p
from pathlib import Path
from typing import Any, NamedTuple

import paddle
from paddle import Tensor

from ppdet_lite.core import runtime

MAX_SIZE = 2**31 - 1  # sizes and indices are 32-bit integers


class Functions(NamedTuple):
    """MKL's functions for one dtype."""

    scalar: type  # of factors passed by reference
    sparse_times_dense: Any  # mkl_?csrmm
    norm: Any  # cblas_?nrm2


def functions(tensor: Tensor) -> Functions | None:
    """Return the functions for a tensor in CPU memory; None if MKL is not in use, or lacks the dtype or the size."""
    return _load()[0].get(tensor.dtype) if 0 < tensor.size <= MAX_SIZE else None


def description() -> str:
    """Return a log line: how bilinear samples are summed on a CPU and, if not by MKL, why not."""
    return f"sums of bilinear samples on a CPU: {_load()[1]}"


def norm(tensor: Tensor) -> float | None:
    """Return the Euclidean norm of a tensor in CPU memory, or None if MKL cannot compute it."""
    library = functions(tensor)
    if library is None:
        return None
    tensor = tensor.contiguous()
    return library.norm(tensor.size, c_void_p(tensor.data_ptr()), 1)


@functools.cache
def _load() -> tuple[dict[paddle.dtype, Functions], str]:  # the functions by dtype, and the text for the log
    if not runtime.is_enabled("mkl"):
        return {}, f"Paddle's operators ({runtime.SWITCH} is without mkl)"
    paths = sorted((Path(paddle.__file__).parent / "libs").glob("*mklml*"))
    if not paths:
        return {}, "Paddle's operators (Paddle is installed without MKL)"
    try:
        mkl = ctypes.CDLL(str(paths[0]))
        single = Functions(c_float, mkl.mkl_scsrmm, mkl.cblas_snrm2)
        double = Functions(c_double, mkl.mkl_dcsrmm, mkl.cblas_dnrm2)
    except (OSError, AttributeError) as error:  # the library, or a function of it, is missing
        return {}, f"Paddle's operators (MKL cannot be used: {error})"
    for library in (single, double):
        library.sparse_times_dense.restype = None
        library.norm.restype, library.norm.argtypes = library.scalar, [c_int, c_void_p, c_int]
    return {paddle.float32: single, paddle.float64: double}, "MKL's sparse matrix products"
