"""Convolution and fully connected layers."""

from paddle import Tensor, nn

from ppdet_lite.ops.layers import conv2d, linear


class Conv2D(nn.Conv2D):
    """`nn.Conv2D` with a faster implementation on CPUs; zero padding, and all options equal in y and x."""

    bfloat16 = False  # multiply in bfloat16 on a CPU; `modeling.amp` sets it

    def forward(self, x: Tensor) -> Tensor:
        """[N, C_in, H, W] -> [N, C_out, H', W']."""
        options = self._stride[0], self._padding, self._dilation[0], self._groups
        return conv2d(x, self.weight, self.bias, *options, bfloat16=self.bfloat16)


class Linear(nn.Linear):
    """`nn.Linear` that can multiply in bfloat16 on a CPU."""

    bfloat16 = False  # see `Conv2D`

    def forward(self, x: Tensor) -> Tensor:
        """[R, inputs] -> [R, outputs]."""
        return linear(x, self.weight, self.bias, self.bfloat16)
