"""Products of a sparse and a dense matrix by MKL's Sparse BLAS; Paddle has none for a CPU."""

from ctypes import byref, c_char_p, c_int, c_void_p
from typing import NamedTuple

import numpy as np
from paddle import Tensor

from ppdet_lite.ops.cpu import mkl
from ppdet_lite.ops.cpu.onednn import empty

_NOT_TRANSPOSED = c_char_p(b"N")
_GENERAL_FROM_ZERO = c_char_p(b"GxxC")  # a general matrix with indices from 0, and dense matrices row by row


class SparseMatrix(NamedTuple):
    """A sparse matrix [B, M] in compressed rows (CSR). An entry may occur several times; its values are added."""

    starts: np.ndarray  # int32 [B + 1]: where the entries of each row start
    columns: np.ndarray  # int32 [entries]
    values: np.ndarray  # float32 or float64 [entries]
    width: int  # M

    def multiply(self, dense: Tensor) -> Tensor:
        """Return the product with a contiguous matrix [M, C] of the same dtype, for which `is_supported` holds."""
        height, channels = len(self.starts) - 1, dense.shape[1]
        library, out = mkl.functions(dense), empty([height, channels], dense.dtype)
        entries = (self.values.ctypes, self.columns.ctypes, self.starts.ctypes, self.starts[1:].ctypes)
        library.sparse_times_dense(
            _NOT_TRANSPOSED,
            *(byref(c_int(size)) for size in (height, channels, self.width)),
            byref(library.scalar(1)),  # factor of the product
            _GENERAL_FROM_ZERO,
            *(c_void_p(array.data) for array in entries),
            c_void_p(dense.data_ptr()),
            byref(c_int(channels)),  # length of a row
            byref(library.scalar(0)),  # factor of the previous values of out
            c_void_p(out.data_ptr()),
            byref(c_int(channels)),
        )
        return out

    def transpose(self) -> "SparseMatrix":
        """Return the transposed matrix [M, B], the entries of each row in the order of this matrix's rows."""
        # Sorted by 16 bits at a time: only for 16 bits NumPy's stable sort is a radix sort, five times as fast.
        order = np.argsort(self.columns.astype(np.uint16), kind="stable")
        if self.width > 1 << 16:
            order = order[np.argsort((self.columns >> 16).astype(np.uint16)[order], kind="stable")]
        height = len(self.starts) - 1
        rows = np.repeat(np.arange(height, dtype=np.int32), np.diff(self.starts))
        starts = np.zeros(self.width + 1, np.int32)
        np.cumsum(np.bincount(self.columns, minlength=self.width), out=starts[1:])
        return SparseMatrix(starts, rows[order], self.values[order], height)


def is_supported(dense: Tensor, height: int, entries: int) -> bool:
    """Return whether MKL can multiply a sparse matrix [height, M] by this matrix [M, C], and that by its transpose."""
    sizes = height * dense.shape[1], entries
    return mkl.functions(dense) is not None and entries > 0 and max(sizes) <= mkl.MAX_SIZE
