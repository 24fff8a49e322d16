"""In-place ReLU against Paddle's."""

import paddle
import paddle.nn.functional as F
import pytest

from ppdet_lite.ops import dispatch
from ppdet_lite.ops.layers import add_relu, relu


@pytest.mark.parametrize("on_cpu", [True, False])
def test_values_gradients_and_in_place(on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "on_cpu", lambda _: on_cpu)
    found = []
    for activate, add_and_activate in ((relu, add_relu), (F.relu, lambda a, b: F.relu(a + b))):
        paddle.seed(0)
        x, y = paddle.randn([3, 4]), paddle.randn([3, 4])
        x.stop_gradient = y.stop_gradient = False
        scaled, twice = x * 3, y * 2
        inner = activate(scaled)
        out = add_and_activate(inner * -0.5, twice)
        if activate is relu:
            assert (inner.data_ptr() == scaled.data_ptr()) == on_cpu
        out.backward(paddle.arange(12, dtype="float32").reshape([3, 4]))
        found.append([out.numpy(), x.grad.numpy(), y.grad.numpy()])
    for ours, theirs in zip(*found, strict=True):
        assert (ours == theirs).all()


def test_without_gradients() -> None:
    assert relu(paddle.to_tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    assert add_relu(paddle.to_tensor([-1.0, 2.0]), paddle.to_tensor([3.0, -5.0])).tolist() == [2.0, 0.0]
