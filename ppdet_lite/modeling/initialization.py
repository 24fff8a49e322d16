"""Weight initialization, as `ParamAttr` for the constructors of layers. Biases are 0 unless given, Paddle's default."""

from paddle import ParamAttr
from paddle.nn.initializer import Constant, KaimingNormal, KaimingUniform, Normal


def kaiming_normal() -> ParamAttr:
    """Normal with variance 2/fan-out, for a convolution before a ReLU (He et al. 2015, "Delving Deep", equation 14)."""
    return ParamAttr(initializer=KaimingNormal(mode="fan_out"))


def xavier_fill() -> ParamAttr:
    """Uniform with variance 1/fan-in: Caffe2's XavierFill, used for FPN convolutions and fully connected layers."""
    return ParamAttr(initializer=KaimingUniform(nonlinearity="linear"))


def normal(std: float, lr_scale: float = 1.0) -> ParamAttr:
    """Normal with mean 0 and this standard deviation; `lr_scale` multiplies the learning rate."""
    return ParamAttr(learning_rate=lr_scale, initializer=Normal(0.0, std))


def zeros(lr_scale: float = 1.0) -> ParamAttr:
    """Zero; `lr_scale` multiplies the learning rate."""
    return ParamAttr(learning_rate=lr_scale, initializer=Constant(0.0))
