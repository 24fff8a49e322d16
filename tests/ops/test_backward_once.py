"""A second backward pass over operators with a custom one raises an error; Paddle alone would end the process."""

from collections.abc import Callable

import paddle
import pytest
from paddle import Tensor

from ppdet_lite.ops.bilinear import sum_rows
from ppdet_lite.ops.layers import conv2d, frozen_norm, group_norm


def rows_of(x: Tensor) -> Tensor:
    return sum_rows(x.reshape([-1, 4]), (paddle.to_tensor([[0, 1]]), paddle.ones([1, 2])))


FOUR = paddle.ones([4])
OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d": lambda x: conv2d(x, paddle.ones([2, 4, 3, 3])),
    "frozen_norm": lambda x: frozen_norm(x, 0 * FOUR, FOUR, FOUR, FOUR, 1e-5),
    "group_norm": lambda x: group_norm(x, 2, FOUR, FOUR),
    "sum_rows": rows_of,
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_second_backward_pass_is_refused(operator: Callable[[Tensor], Tensor]) -> None:
    x = paddle.rand([1, 4, 5, 6])
    x.stop_gradient = False
    loss = (operator(x) ** 2).sum()
    loss.backward(retain_graph=True)
    first = x.grad.numpy()
    with pytest.raises(
        OSError, match="RuntimeError: second backward pass over the same graph"
    ):  # as Paddle passes it on
        loss.backward()
    assert (x.grad.numpy() == first).all()
    (operator(x) ** 2).sum().backward()
    assert (x.grad.numpy() == 2 * first).all()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_a_result_used_twice_has_one_backward_pass(operator: Callable[[Tensor], Tensor]) -> None:
    x = paddle.rand([1, 4, 5, 6])
    x.stop_gradient = False
    (operator(x) ** 2).sum().backward()
    once = x.grad.numpy()
    x.clear_gradient(False)
    out = operator(x)
    (out * out).sum().backward()
    assert abs(x.grad.numpy() - once).max() <= 1e-6 * abs(once).max()
