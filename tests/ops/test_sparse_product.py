"""Products with sparse matrices, and norms, by MKL; and what replaces MKL where it cannot be used."""

import ctypes
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppdet_lite.core import runtime
from ppdet_lite.ops.cpu import mkl, sparse_product
from ppdet_lite.ops.cpu.sparse_product import SparseMatrix, is_supported
from ppdet_lite.ops.squared_norms import squared_norms

needs_mkl = pytest.mark.skipif(mkl.functions(paddle.ones([1])) is None, reason="Paddle without MKL")


def sparse(lengths: list[int], width: int, dtype: str = "float64", seed: int = 0) -> tuple[SparseMatrix, np.ndarray]:
    """Make a matrix with this many entries in each row, some of them repeated, and the same matrix with its zeros."""
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    columns = rng.integers(0, width, starts[-1]).astype(np.int32)
    values = rng.normal(size=starts[-1]).astype(dtype)
    dense = np.zeros((len(lengths), width))
    np.add.at(dense, (np.repeat(np.arange(len(lengths)), lengths), columns), values.astype(np.float64))
    return SparseMatrix(starts, columns, values, width), dense


@needs_mkl
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-13)])
def test_products(monkeypatch: pytest.MonkeyPatch, dtype: str, tolerance: float) -> None:
    def uninitialized(shape: list[int], dtype: paddle.dtype) -> paddle.Tensor:
        return paddle.full(shape, np.nan, dtype)

    monkeypatch.setattr(sparse_product, "empty", uninitialized)
    matrix, dense = sparse([3, 0, 1, 12, 0], 7, dtype)
    assert len(matrix.columns) > len(np.unique(matrix.columns))
    rng = np.random.default_rng(1)
    for left, reference, rows in ((matrix, dense, 7), (matrix.transpose(), dense.T, 5)):
        right = rng.normal(size=(rows, 6)).astype(dtype)
        product = left.multiply(paddle.to_tensor(right))
        assert product.dtype == getattr(paddle, dtype)
        np.testing.assert_allclose(product.numpy(), reference @ right, atol=tolerance)


@pytest.mark.parametrize("width", [5, 1 << 16, 200_000])
def test_transposition_keeps_the_order_of_the_rows(width: int) -> None:
    matrix, dense = sparse([40] * 5, width)
    transposed = matrix.transpose()
    assert transposed.width == 5 and len(transposed.starts) == width + 1 and transposed.starts.dtype == np.int32
    rebuilt = np.zeros((width, 5))
    for row in np.flatnonzero(np.diff(transposed.starts)):
        entries = slice(transposed.starts[row], transposed.starts[row + 1])
        assert (np.diff(transposed.columns[entries]) >= 0).all()
        np.add.at(rebuilt[row], transposed.columns[entries], transposed.values[entries])
    np.testing.assert_allclose(rebuilt, dense.T, atol=1e-14)


@needs_mkl
def test_products_repeat_bit_for_bit() -> None:
    matrix, _ = sparse([16] * 3000, 500, "float32")
    rows = paddle.to_tensor(np.random.default_rng(2).normal(size=(500, 64)).astype(np.float32))
    first, *others = (matrix.multiply(rows).numpy() for _ in range(3))
    assert all((other == first).all() for other in others)


@needs_mkl
def test_sizes_that_mkl_cannot_index_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = paddle.ones([10, 4])
    assert is_supported(rows, height=25, entries=100)
    assert not is_supported(rows, height=0, entries=0)
    assert not is_supported(rows.astype("float16"), height=25, entries=100)
    assert not is_supported(rows[:0], height=25, entries=100)
    for limit, expected in ((100, True), (99, False), (39, False)):
        monkeypatch.setattr(mkl, "MAX_SIZE", limit)
        assert is_supported(rows, height=25, entries=100) == expected  # 40, 100 and 100 values


@pytest.mark.parametrize("by_mkl", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_squared_norms(monkeypatch: pytest.MonkeyPatch, dtype: str, by_mkl: bool) -> None:
    if not by_mkl:
        monkeypatch.setattr(mkl, "functions", lambda _: None)
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=shape).astype(dtype) for shape in ((3, 5), (1,), (40, 50))]
    tensors = [paddle.to_tensor(array) for array in arrays]
    tensors[2] = paddle.to_tensor(arrays[2].T).transpose([1, 0])  # not contiguous
    expected = [(array.astype(np.float64) ** 2).sum() for array in arrays]
    np.testing.assert_allclose(squared_norms(tensors).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_squared_norms_are_not_finite_if_a_value_is_not(bad: float) -> None:
    norms = squared_norms([paddle.to_tensor([1.0, bad, 2.0]), paddle.to_tensor([3.0, 4.0])]).numpy()
    assert not np.isfinite(norms[0]) and norms[1] == 25


class _WithoutNorm(ctypes.CDLL):
    def __getattr__(self, name: str) -> object:
        if name == "cblas_snrm2":
            raise AttributeError(f"undefined symbol: {name}")
        return super().__getattr__(name)


@pytest.mark.parametrize(
    "reason", ["PPDET_LITE_RUNTIME is without mkl", "Paddle is installed without MKL", "MKL cannot be used: undefined"]
)
def test_without_mkl_paddles_operators_are_used(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    if "cannot" in reason and mkl.functions(paddle.ones([1])) is None:
        pytest.skip("Paddle without MKL")
    monkeypatch.setattr(mkl, "_load", mkl._load.__wrapped__)
    if "PPDET" in reason:
        monkeypatch.setenv(runtime.SWITCH, "threads,onednn")
    elif "installed" in reason:
        monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    else:
        monkeypatch.setattr(ctypes, "CDLL", _WithoutNorm)
    assert mkl.description().startswith(f"sums of bilinear samples on a CPU: Paddle's operators ({reason}")
    assert not is_supported(paddle.ones([2, 2]), height=2, entries=2)
    assert squared_norms([paddle.to_tensor([3.0, 4.0])]).tolist() == [25]
