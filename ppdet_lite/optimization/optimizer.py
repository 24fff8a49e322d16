"""Optimizers: learning rates, parameter groups, gradient clipping, and optimizer state for checkpoints."""

import fnmatch
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite.config.constrained_types import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling.norm import named_weights, norm_layers
from ppdet_lite.ops.squared_norms import squared_norms

_EARLIER_STAGE = re.compile(r"^earlier\.\d+\.")
ACCUMULATORS = {  # names of the state that an optimizer keeps for each parameter, as in Paddle's keys
    paddle.optimizer.Momentum: ("velocity",),
    paddle.optimizer.AdamW: ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc"),
}


@register
@dataclass(frozen=True)
class Average:
    """Exponential moving average of the weights, which is evaluated and exported instead of the latest weights.

    decay: weight of the previous average in each step; the average covers about 1 / (1 - decay) steps. In step t it is
        at most (1 + t) / (10 + t), so that the average does not consist of initial weights: 0.99 applies from step 890
        on, 0.9998 from step 44,990.
    """

    decay: Fraction = 0.9998


@dataclass(frozen=True)
class Optimizer(ABC):
    """Base class of all optimizers.

    base_lr, base_batch: learning rate for `base_batch` images per step; it is scaled in proportion to the actual number
        of images per step (Goyal et al. 2017).
    weight_decay: of all parameters except those of norm layers.
    norm_decay: weight decay of norm layers.
    clip_norm: upper limit of the joint L2 norm of all gradients, to which they are scaled down; null for no limit.
    lr_scales: {pattern: factor} of the learning rate of parameters whose names match, such as {backbone.*: 0.1}. If
        several patterns match, their factors are multiplied.
    """

    base_lr: PositiveFloat = 0.02
    base_batch: PositiveInt = 16
    weight_decay: NonNegativeFloat = 1e-4
    norm_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None
    lr_scales: dict[str, PositiveFloat] = field(default_factory=dict)

    def scaled_lr(self, images_per_step: int) -> float:
        """Return the learning rate for this number of images per step over all devices, before the schedule."""
        return self.base_lr * images_per_step / self.base_batch

    def build(self, model: nn.Layer) -> paddle.optimizer.Optimizer:
        """Build Paddle's optimizer of a model's trainable parameters. Its learning rate must be set before every step.

        There is one parameter group per weight decay and relative learning rate (`ParamAttr(learning_rate=...)`).
        Raises UserError if a pattern of lr_scales matches no parameter, or if all parameters are frozen.
        """
        for pattern, factor in self.lr_scales.items():
            for parameter in match_parameters(model, pattern, "optimizer.lr_scales"):
                parameter.optimize_attr["learning_rate"] *= factor
        norm_parameters = {id(parameter) for norm in norm_layers(model) for parameter in norm.parameters(False)}
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for parameter in model.parameters():
            if not parameter.stop_gradient:
                decay = self.norm_decay if id(parameter) in norm_parameters else self.weight_decay
                groups.setdefault((decay, parameter.optimize_attr["learning_rate"]), []).append(parameter)
        if not groups:
            raise UserError("no parameter is trained: remove patterns from train.freeze")
        return self._build(
            [
                {"params": parameters, "weight_decay": decay, "learning_rate": lr_scale}
                for (decay, lr_scale), parameters in groups.items()
            ]
        )

    @abstractmethod
    def _build(self, groups: list[dict[str, Any]]) -> paddle.optimizer.Optimizer:
        """Build Paddle's optimizer for these parameter groups."""


@register
@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum. Weight decay is added to the gradient."""

    momentum: Fraction = 0.9

    def _build(self, groups: list[dict[str, Any]]) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.Momentum(0.0, self.momentum, parameters=groups)


@register
@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    base_lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.05
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999

    def _build(self, groups: list[dict[str, Any]]) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.AdamW(0.0, self.beta1, self.beta2, parameters=groups)


def match_parameters(model: nn.Layer, pattern: str, key: str) -> list[Tensor]:
    """Return the parameters whose names match a pattern such as backbone.res[23].*, or raise UserError.

    In a Cascade R-CNN, a pattern such as box_head.* matches the layers of all stages; those of the earlier ones are
    named earlier.0.box_head.* and earlier.1.box_head.*.
    """
    named = named_weights(model)
    matches = [
        parameter
        for name, parameter in named.items()
        if any(fnmatch.fnmatchcase(each, pattern) for each in (name, _EARLIER_STAGE.sub("", name)))
    ]
    if not matches:
        raise UserError(f"{key}: {pattern!r} matches no parameter; an example of a name is {next(iter(named))}")
    return matches


def freeze(model: nn.Layer, patterns: Sequence[str]) -> None:
    """Freeze the parameters whose names match any of the patterns. Raises UserError if a pattern matches none."""
    for pattern in patterns:
        for parameter in match_parameters(model, pattern, "train.freeze"):
            parameter.stop_gradient = True


@paddle.no_grad()
def clip_gradients(model: nn.Layer, limit: float | None) -> float:
    """Scale all gradients of a model down to a joint L2 norm of `limit`; return the norm before scaling.

    Paddle's own clipping uses a separate norm per parameter group. Synchronizes with the GPU once.
    """
    norm = math.sqrt(sum(squared_gradient_norms(model).tolist()))
    if limit is not None and norm > limit:
        scale_gradients(model, limit / norm)
    return norm


@paddle.no_grad()
def squared_gradient_norms(model: nn.Layer) -> Tensor:
    """Return the squared L2 norm of each gradient of a model: [P], on the model's device."""
    return squared_norms(_gradients(model))


@paddle.no_grad()
def scale_gradients(model: nn.Layer, factor: float) -> None:
    """Multiply all gradients of a model by a factor."""
    if factor != 1:
        for gradient in _gradients(model):
            gradient.scale_(factor)


def _gradients(model: nn.Layer) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def optimizer_state(optimizer: paddle.optimizer.Optimizer, model: nn.Layer) -> dict[str, np.ndarray]:
    """Return the optimizer's accumulators by the model's parameter names: "backbone.stem.conv.weight/velocity".

    Paddle's own keys consist of internal names and counters, which depend on what the process did before.
    """
    internal = {parameter.name: name for name, parameter in model.named_parameters()}
    state = {}
    for key, value in optimizer.state_dict().items():
        if isinstance(value, Tensor):
            owner = _owner(key, internal)
            accumulator = re.sub(r"_\d+$", "", key[len(owner) + 1 :])
            state[f"{internal[owner]}/{accumulator}"] = value.numpy()
    return state


def restore_optimizer(optimizer: paddle.optimizer.Optimizer, model: nn.Layer, state: dict[str, np.ndarray]) -> None:
    """Load a result of `optimizer_state` into the first optimizer built for a model, before its first step.

    A state without arrays is that of an optimizer before its first update, for example if all steps so far exceeded
    float16. Raises UserError if the state is that of another model or another kind of optimizer.
    """
    if not state:
        return
    parameters = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    accumulators = ACCUMULATORS[type(optimizer)]
    expected = {f"{name}/{accumulator}" for name in parameters for accumulator in accumulators}
    if differing := sorted(expected ^ set(state)):
        raise UserError(
            "the checkpoint's optimizer state belongs to another optimizer or model (missing or unexpected arrays: "
            f"{len(differing)}, such as {differing[0]}); resume with the checkpoint's config"
        )
    restored = {}
    for key, value in state.items():
        name, _, accumulator = key.partition("/")
        shape = tuple(parameters[name].shape)
        if value.shape != shape and value.size != 1:
            raise UserError(f"the checkpoint's optimizer state of {key} has shape {value.shape}, the model {shape}")
        restored[f"{parameters[name].name}_{accumulator}_0"] = paddle.to_tensor(value)  # 0: the first optimizer
    optimizer.set_state_dict(restored)


def _owner(key: str, internal: dict[str, str]) -> str:
    """Return the longest internal parameter name that a key begins with: w_1_0_velocity_0 belongs to w_1_0, not w_1."""
    return max((name for name in internal if key.startswith(f"{name}_")), key=len)
