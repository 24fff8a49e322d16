"""Optimizers: the learning rate's arithmetic, parameter groups, and state that survives in a checkpoint."""

import fnmatch
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import paddle
from paddle import Tensor, nn
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling.norm import STATISTICS, FrozenBatchNorm

NORMS = (nn.BatchNorm2D, nn.SyncBatchNorm, nn.GroupNorm, FrozenBatchNorm)
ACCUMULATORS = {
    paddle.optimizer.Momentum: ("velocity",),
    paddle.optimizer.AdamW: ("moment1", "moment2", "beta1_pow_acc", "beta2_pow_acc"),
}
Share = Annotated[float, Field(ge=0, le=1)]


@register
@dataclass(frozen=True)
class Average:
    """The average of weights that is evaluated and exported in place of the last ones.

    decay: the share that a step leaves of the average; it lasts about 1 / (1 - decay) steps.
    """

    decay: Share = 0.9998


@dataclass(frozen=True)
class Optimizer(ABC):
    """What all optimizers share.

    base_lr, base_batch: the learning rate that suits `base_batch` images per step; it is scaled in proportion to the
        images that really make a step (Goyal et al. 2017, "linear scaling").
    weight_decay: of every parameter but those of norm layers.
    norm_decay: weight decay of norm layers.
    clip_norm: gradients are scaled down to this L2 norm over all parameters (`clip_gradients`); null for never.
    lr_scales: {pattern: factor} of the learning rate of parameters by name, such as {backbone.*: 0.1}; a parameter that
        several patterns match has all their factors.
    """

    base_lr: PositiveFloat = 0.02
    base_batch: PositiveInt = 16
    weight_decay: NonNegativeFloat = 1e-4
    norm_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat | None = None
    lr_scales: dict[str, PositiveFloat] = field(default_factory=dict)

    def scaled_lr(self, images_per_step: int) -> float:
        """The full learning rate for this many images per step, over all devices."""
        return self.base_lr * images_per_step / self.base_batch

    def build(self, model: nn.Layer) -> paddle.optimizer.Optimizer:
        """The optimizer of a model's trainable parameters; its rate is set before every step.

        A group for each weight decay and learning rate; a `ParamAttr(learning_rate=...)` is relative to the others.
        Raises UserError for a pattern of lr_scales that matches no parameter.
        """
        for pattern, factor in self.lr_scales.items():
            for parameter in matching(model, pattern, "optimizer.lr_scales"):
                parameter.optimize_attr["learning_rate"] *= factor
        norms = {id(p) for layer in model.sublayers() if isinstance(layer, NORMS) for p in layer.parameters(False)}
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for parameter in model.parameters():
            if not parameter.stop_gradient:
                decay = self.norm_decay if id(parameter) in norms else self.weight_decay
                groups.setdefault((decay, parameter.optimize_attr["learning_rate"]), []).append(parameter)
        return self._build(
            [
                {"params": parameters, "weight_decay": decay, "learning_rate": lr_scale}
                for (decay, lr_scale), parameters in groups.items()
            ]
        )

    @abstractmethod
    def _build(self, groups: list[dict[str, Any]]) -> paddle.optimizer.Optimizer:
        """Paddle's optimizer of these groups."""


@register
@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent with momentum; weight decay is added to the gradient."""

    momentum: Share = 0.9

    def _build(self, groups: list[dict[str, Any]]) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.Momentum(0.0, self.momentum, parameters=groups)


@register
@dataclass(frozen=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    base_lr: PositiveFloat = 1e-4
    weight_decay: NonNegativeFloat = 0.05
    beta1: Share = 0.9
    beta2: Share = 0.999

    def _build(self, groups: list[dict[str, Any]]) -> paddle.optimizer.Optimizer:
        return paddle.optimizer.AdamW(0.0, self.beta1, self.beta2, parameters=groups)


def matching(model: nn.Layer, pattern: str, key: str) -> list[Tensor]:
    """The parameters whose names match a pattern such as backbone.res[23].*; UserError, with the key, if none does."""
    named = {name: p for name, p in model.named_parameters() if not name.endswith(STATISTICS)}
    found = [parameter for name, parameter in named.items() if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        raise UserError(f"{key}: {pattern!r} matches no parameter; they are named such as {next(iter(named))}")
    return found


def freeze(model: nn.Layer, patterns: Sequence[str]) -> None:
    """Train no parameter whose name matches one of the patterns. Raises UserError for one that matches none."""
    for pattern in patterns:
        for parameter in matching(model, pattern, "train.freeze"):
            parameter.stop_gradient = True


@paddle.no_grad()
def clip_gradients(model: nn.Layer, limit: float | None) -> float:
    """Scale all gradients of a model down to a joint L2 norm of `limit`; return the norm that they had.

    Paddle's own clipping would take the norm of each parameter group by itself. The device is waited for once.
    """
    norm = math.sqrt(sum(squared_norms(model).tolist()))
    if limit is not None and norm > limit:
        scale_gradients(model, limit / norm)
    return norm


@paddle.no_grad()
def squared_norms(model: nn.Layer) -> Tensor:
    """The squared L2 norm of each gradient of a model: [P], on its device."""
    # not `dot`, which on a CPU adds one number after the other: slowly, and of large layers two digits are lost
    return paddle.stack([gradient.square().sum() for gradient in _gradients(model)])


@paddle.no_grad()
def scale_gradients(model: nn.Layer, factor: float) -> None:
    """Multiply all gradients of a model by a factor."""
    if factor != 1:
        for gradient in _gradients(model):
            gradient.scale_(factor)


def _gradients(model: nn.Layer) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def optimizer_state(optimizer: paddle.optimizer.Optimizer, model: nn.Layer) -> dict[str, np.ndarray]:
    """The optimizer's accumulators by the model's own parameter names: "backbone.stem.conv.weight/velocity".

    Paddle names them after the parameters' internal names and a counter, which depend on what else the process did.
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
    """Put back what `optimizer_state` gave, into the first optimizer of a model, before its first step.

    Raises UserError if it is the state of another model or another kind of optimizer.
    """
    parameters = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    accumulators = ACCUMULATORS[type(optimizer)]
    wanted = {f"{name}/{accumulator}" for name in parameters for accumulator in accumulators}
    if differing := sorted(wanted ^ set(state)):
        raise UserError(
            f"the checkpoint's optimizer state is of another optimizer or model: {len(differing)} parts differ, "
            f"the first is {differing[0]}; resume with the config it was made with"
        )
    restored = {}
    for key, value in state.items():
        name, _, accumulator = key.partition("/")
        shape = tuple(parameters[name].shape)
        if value.shape != shape and value.size != 1:
            raise UserError(f"the checkpoint's optimizer state of {key} has shape {value.shape}, the model {shape}")
        restored[f"{parameters[name].name}_{accumulator}_0"] = paddle.to_tensor(value)
    optimizer.set_state_dict(restored)


def _owner(key: str, internal: dict[str, str]) -> str:
    """The internal parameter name that an accumulator's key begins with: the longest, as w_1 begins w_10."""
    return max((name for name in internal if key.startswith(f"{name}_")), key=len)
