"""The convolution with a bias against Paddle's."""

import numpy as np
import paddle
import pytest
from paddle import nn

from ppdet_lite.modeling.conv import Conv2D


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 1},
        {"kernel_size": 3, "stride": 2, "padding": 2, "dilation": 2},
        {"kernel_size": 3, "groups": 2, "bias_attr": False},
    ],
)
def test_a_convolution_is_paddles(options: dict) -> None:
    """The same result bit for bit; gradients but for the order of a sum."""
    rng = np.random.default_rng(0)
    theirs, ours = nn.Conv2D(4, 6, **options), Conv2D(4, 6, **options)
    for parameter in theirs.parameters():
        parameter.set_value(rng.standard_normal(parameter.shape).astype(np.float32))
    ours.set_state_dict(theirs.state_dict())
    image = rng.standard_normal((2, 4, 9, 11)).astype(np.float32)
    found = []
    for layer in (theirs, ours):
        x = paddle.to_tensor(image, stop_gradient=False)
        y = layer(x)
        (y * y).sum().backward()
        found.append([y, x.grad, *(parameter.grad for parameter in layer.parameters())])
    np.testing.assert_array_equal(found[1][0].numpy(), found[0][0].numpy())
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=1e-5, atol=1e-4)
