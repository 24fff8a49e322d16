"""How the weights of a layer begin, as attributes to make it with. Biases begin at zero, as Paddle has it."""

from paddle import ParamAttr
from paddle.nn.initializer import Constant, KaimingNormal, KaimingUniform, Normal


def kaiming_normal() -> ParamAttr:
    """Normal with variance 2/fan-out, for a convolution before a ReLU (He et al. 2015, "Delving Deep", equation 14)."""
    return ParamAttr(initializer=KaimingNormal(mode="fan_out"))


def xavier_fill() -> ParamAttr:
    """Uniform with variance 1/fan-in: Caffe2's XavierFill, used for FPN convs and box-head layers."""
    return ParamAttr(initializer=KaimingUniform(nonlinearity="linear"))


def normal(std: float, lr_scale: float = 1.0) -> ParamAttr:
    """From N(0, std); learns at `lr_scale` times the others' rate."""
    return ParamAttr(learning_rate=lr_scale, initializer=Normal(0.0, std))


def zeros(lr_scale: float = 1.0) -> ParamAttr:
    """Zero; learns at `lr_scale` times the others' rate."""
    return ParamAttr(learning_rate=lr_scale, initializer=Constant(0.0))
