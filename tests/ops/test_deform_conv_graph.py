import numpy as np
import paddle
import pytest

from ppdet_lite.ops.cpu.deform_conv_graph import traced_deform_conv2d
from ppdet_lite.ops.deform_conv import deform_conv2d

CASES = [  # stride, padding, dilation, deformable groups, whether there is a mask, a bias
    ((1, 1), (1, 1), (1, 1), 1, True, False),
    ((2, 1), (1, 0), (1, 1), 2, False, True),
    ((1, 2), (2, 4), (2, 3), 4, True, True),
]


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups", "masked", "biased"), CASES)
def test_equals_paddles_operator(stride, padding, dilation, groups, masked, biased) -> None:
    rng = np.random.default_rng(groups)

    def tensor(*shape: int) -> paddle.Tensor:
        return paddle.to_tensor(rng.normal(size=shape).astype("float32"))

    x, weight, bias = tensor(2, 8, 9, 13), tensor(6, 8, 3, 2), tensor(6) if biased else None
    oh, ow = (
        (s + 2 * p - d * (k - 1) - 1) // t + 1
        for s, p, d, k, t in zip((9, 13), padding, dilation, (3, 2), stride, strict=True)
    )
    offset = 4 * tensor(2, groups * 12, oh, ow)  # many beyond the border
    mask = tensor(2, groups * 6, oh, ow) if masked else None
    ours = traced_deform_conv2d(x, offset, weight, mask, bias, stride, padding, dilation, groups)
    theirs = deform_conv2d(x, offset, weight, mask, bias, stride, padding, dilation, groups, implementation="gather")
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=2e-5)
