import math

import numpy as np
import paddle
import pytest

from ppdet_lite.ops.bilinear import cross_taps, dense_taps, linear_taps, sum_rows
from ppdet_lite.ops.cpu import mkl, row_sums


def tensor(values, dtype="float64", wants_grad: bool = False) -> paddle.Tensor:
    return paddle.to_tensor(np.asarray(values), dtype=dtype, stop_gradient=not wants_grad)


def test_linear_taps_of_a_zero_padded_axis() -> None:
    position = tensor([-1.5, -1, -0.5, 0, 1.25, 3, 3.5, 4, 4.5, np.nan], wants_grad=True)
    index, weight = linear_taps(position, 4)
    expected = [[0, 0], [0, 0], [0, 0.5], [1, 0], [0.75, 0.25], [1, 0], [0.5, 0], [0, 0], [0, 0], [0, 0]]
    assert weight.tolist() == expected
    assert index.numpy().min() >= 0 and index.numpy().max() <= 3
    assert index[4].tolist() == [1, 2] and index[2, 1] == 0 and index[6, 0] == 3

    values = tensor([10.0, 20, 40, 80])
    (weight * values[index]).sum().backward()
    # between pixels their difference, at a pixel that to its right; -1 and 4 are outside already
    assert position.grad.tolist() == [0, 0, 10, 10, 20, -80, -80, 0, 0, 0]


def test_linear_taps_with_a_size_for_each_position() -> None:
    index, weight = linear_taps(tensor([[2.5], [2.5]]), tensor([[3], [4]]))
    assert (index.tolist(), weight.tolist()) == ([[[2, 2]], [[2, 3]]], [[[0.5, 0]], [[0.5, 0.5]]])


def test_dense_taps_equal_the_taps_of_each_position() -> None:
    rng = np.random.default_rng(0)
    start, step = rng.uniform(0, 4, (50, 1)), rng.uniform(0, 1, (50, 1))
    start[:10], step[:10] = np.floor(start[:10]), 1  # on pixels
    start[10:20], step[10:20] = np.nextafter(np.ceil(start[10:20]), 0), 1 + 2e-16  # rounding errors across a pixel
    places = np.minimum(start + step * np.arange(4), 5)
    weights, values = rng.normal(size=(50, 4)), tensor(rng.normal(size=6))

    answers = []
    for merge in (True, False):
        position, weight = tensor(places, wants_grad=True), tensor(weights, wants_grad=True)
        if merge:
            index, share = dense_taps(position, weight, 6)
        else:
            index, share = linear_taps(position, 6)
            share = share * weight.unsqueeze(-1)
        assert index.numpy().min() >= 0 and index.numpy().max() <= 5
        total = (share * values[index]).flatten(1).sum(axis=1)
        total.sum().backward()
        slope = np.where(places < 5, position.grad.numpy(), 0)
        slope[10:20] = 0  # left or right of the pixel, whichever
        answers.append([total.numpy(), weight.grad.numpy(), slope])
    assert index.shape == [50, 4, 2] and dense_taps(position, weight, 6)[0].shape == [50, 5]
    for merged, plain in zip(*answers, strict=True):
        np.testing.assert_allclose(merged, plain, atol=1e-12)


def test_cross_taps() -> None:
    y = (tensor([[0, 2]], "int64"), tensor([[0.25, 0.75]]))
    x = (tensor([[1, 3]], "int64"), tensor([[0.5, 2]]))
    index, weight = cross_taps(y, x, 10)
    assert (index.tolist(), weight.tolist()) == ([[1, 3, 21, 23]], [[0.125, 0.5, 0.375, 1.5]])


@pytest.mark.parametrize("chunk", [None, 1, 60, 1 << 21], ids=lambda chunk: f"chunk {chunk}" if chunk else "MKL")
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_sum_rows(monkeypatch: pytest.MonkeyPatch, chunk: int | None, wanted: tuple[bool, bool]) -> None:
    if chunk:
        monkeypatch.setattr(row_sums, "CHUNK_VALUES", chunk)
        monkeypatch.setattr(mkl, "functions", lambda _: None)
    rng = np.random.default_rng(1)
    table = rng.normal(size=(5, 9))
    indices = [rng.integers(0, 9, (7, 4)), rng.integers(0, 9, (1, 2)), np.zeros((0, 3), int)]
    weights = [rng.normal(size=i.shape) for i in indices]
    upstream = rng.normal(size=(8, 5))

    leaf = tensor(table, wants_grad=wanted[0])
    leaves = [tensor(w, wants_grad=wanted[1]) for w in weights]
    out = sum_rows(leaf.transpose([1, 0]), *zip([tensor(i, "int64") for i in indices], leaves, strict=True))
    out.backward(tensor(upstream.T).transpose([1, 0]))

    expected, table_grad, start = np.zeros((8, 5)), np.zeros((9, 5)), 0
    for index, weight, one in zip(indices, weights, leaves, strict=True):
        weight_grad = np.zeros(weight.shape)
        for b in range(len(index)):
            for k in range(index.shape[1]):
                expected[start + b] += weight[b, k] * table[:, index[b, k]]
                table_grad[index[b, k]] += weight[b, k] * upstream[start + b]
                weight_grad[b, k] = table[:, index[b, k]] @ upstream[start + b]
        start += len(index)
        if wanted[1]:
            np.testing.assert_allclose(one.grad.numpy(), weight_grad, atol=1e-12)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-12)
    if wanted[0]:
        np.testing.assert_allclose(leaf.grad.numpy(), table_grad.T, atol=1e-12)


@pytest.mark.parametrize(("sums", "taps", "channels"), [(1000, 9, 7), (1000, 300, 256), (1, 4, 8), (0, 4, 8)])
def test_a_chunk_of_sum_rows_is_bounded_by_the_values_that_it_gathers(sums: int, taps: int, channels: int) -> None:
    """Together the chunks have every sum once, in their order; a chunk is no smaller than needed."""
    chunks = row_sums._chunks(paddle.zeros([3, channels]), paddle.zeros([sums, taps], "int64"))
    counts = [len(range(sums)[part]) for part in chunks]
    assert [i for part in chunks for i in range(sums)[part]] == list(range(sums))
    largest = max(row_sums.CHUNK_VALUES // (taps * channels), 1)
    assert max(counts) <= largest and len(chunks) == max(math.ceil(sums / largest), 1)
