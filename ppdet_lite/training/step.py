"""One training step: a batch forward, its losses backward, the weights moved."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite.assembly.tensors import training_arguments
from ppdet_lite.core.errors import NotFinite
from ppdet_lite.optimization.optimizer import clip_gradients
from ppdet_lite.structures import Patches


class Step(NamedTuple):
    """What a training step tells."""

    losses: dict[str, float]
    metrics: dict[str, float]
    patches: Patches | None = None  # what the R-CNN teacher saw, where there is one


def train_step(
    network: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    batch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    clip_norm: float | None = None,
    iteration: int | None = None,
    seeds: Sequence[int] = (),
) -> Step:
    """One step on a batch of the loader, or on several, after `iteration` others (see `FasterRCNN.forward`).

    Several batches give their mean: of gradients, losses and metrics. seeds: of the sampling in each batch.

    Raises NotFinite, before any weight is updated, when a loss or a gradient is not finite. The losses alone would not
    tell: on a CPU Paddle's ReLU makes 0 of NaN, and a network whose weights are lost goes on with finite losses.
    """
    batches = [batch] if isinstance(batch, Mapping) else batch
    parts = []
    for i, part in enumerate(batches):
        if seeds:
            paddle.seed(seeds[i])
        is_last = i == len(batches) - 1
        with contextlib.nullcontext() if is_last or not hasattr(network, "no_sync") else network.no_sync():
            parts.append(_backward(network, part, iteration, len(batches)))
    losses, metrics = (_mean([getattr(part, key) for part in parts]) for key in ("losses", "metrics"))
    gradient_norm = clip_gradients(network, clip_norm)
    _require_finite("a gradient", {"norm": gradient_norm}, losses, batches[-1])
    optimizer.step()
    optimizer.clear_grad()
    return Step(losses, {**metrics, "gradient_norm": gradient_norm}, parts[-1].patches)


def _backward(network: nn.Layer, batch: Mapping[str, Any], iteration: int | None, batch_count: int) -> Step:
    """Add a batch's share of the gradient to what is there."""
    output = network(*training_arguments(batch), iteration=iteration)
    losses = _numbers(output.losses)
    _require_finite("a loss", losses, losses, batch)
    loss = sum(output.losses.values())
    (loss if batch_count == 1 else loss / batch_count).backward()
    return Step(losses, _numbers(output.metrics), output.patches)


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the parts that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def iteration_seed(seed: int, iteration: int, rank: int) -> int:
    """Every iteration's sampling has a seed of its own, so that resuming needs no generator's state."""
    return int(np.random.SeedSequence((seed, iteration, rank)).generate_state(1)[0])


def _require_finite(
    what: str, values: Mapping[str, float], losses: Mapping[str, float], batch: Mapping[str, Any]
) -> None:
    if not np.isfinite(list(values.values())).all():
        shown = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        raise NotFinite(
            f"{what} is not finite: {shown}; image ids {batch['image_ids'].tolist()}; "
            "lower optimizer.base_lr, lengthen the warm-up, or set optimizer.clip_norm"
        )


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as floats, with one transfer from the device."""
    stacked = paddle.stack([value.detach().astype("float32") for value in values.values()]).numpy()
    return dict(zip(values, stacked.tolist(), strict=True))
