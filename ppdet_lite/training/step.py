"""One training step: a batch forward, its losses backward, the weights moved."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.core.errors import NotFinite, TornStep
from ppdet_lite.modeling.amp import HalfName, half_forward, half_layers
from ppdet_lite.modeling.faster_rcnn import TrainingOutput
from ppdet_lite.modeling.norm import running_statistics
from ppdet_lite.optimization.optimizer import scale_gradients, squared_norms
from ppdet_lite.structures import Patches
from ppdet_lite.training.memory import exhaustion_told


class Step(NamedTuple):
    """What a training step tells."""

    losses: dict[str, float]
    metrics: dict[str, float]
    patches: Patches | None = None  # what the R-CNN teacher saw, where there is one
    overflowed: bool = False  # a gradient went beyond float16: no weight was moved


def train_step(
    network: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    batch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    clip_norm: float | None = None,
    iteration: int | None = None,
    seeds: Sequence[int] = (),
    amp: HalfName | None = None,
    loss_scale: float = 1.0,
) -> Step:
    """One step on a batch of the loader, or on several, after `iteration` others (see `FasterRCNN.forward`).

    Several batches give their mean, of gradients, losses and metrics, and so do those of several ranks. seeds: of the
    sampling in each batch. amp: see `half`. loss_scale: of the backward pass; above 1, gradients that are not finite
    are no error: the step is left out, which every rank sees alike, as they share their gradients.

    Raises NotFinite, before any weight is updated, when a loss or a gradient is not finite. The losses alone would not
    tell: on a CPU Paddle's ReLU makes 0 of NaN, and a network whose weights are lost goes on with finite losses. Raises
    TornStep when some weights may be updated and others not.
    """
    batches = [batch] if isinstance(batch, Mapping) else batch
    outputs: list[TrainingOutput] = []

    def share() -> None:
        with exhaustion_told("training"):
            for i, part in enumerate(batches):
                if seeds:
                    paddle.seed(seeds[i])
                outputs.append(_backward(network, part, iteration, len(batches), amp, loss_scale))

    ranks.together(share)
    _average_over_ranks(network)
    parts, scaled_norm = _read(outputs, squared_norms(network))
    gradient_norm = scaled_norm / loss_scale
    if loss_scale > 1 and not math.isfinite(gradient_norm):
        optimizer.clear_grad(set_to_zero=False)
        return Step(*_means(parts), overflowed=True)
    losses, metrics = map(_mean, zip(*ranks.together(lambda: _finite_means(parts, batches, clip_norm)), strict=True))
    _require_finite("a gradient", {"norm": gradient_norm}, losses, batches, clip_norm)
    clipped = 1.0 if clip_norm is None or gradient_norm <= clip_norm else clip_norm / gradient_norm
    scale_gradients(network, clipped / loss_scale)
    with updating("the weights"):
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    return Step(losses, {**metrics, "gradient_norm": gradient_norm}, outputs[-1].patches)


@contextlib.contextmanager
def updating(what: str) -> Iterator[None]:
    """What breaks off inside is half updated: raises TornStep for any error."""
    try:
        with exhaustion_told(f"the update of {what}"):
            yield
    except Exception as error:
        raise TornStep(f"the update of {what} broke off ({error}); go on from the last checkpoint") from error


def _backward(
    network: nn.Layer,
    batch: Mapping[str, Any],
    iteration: int | None,
    batch_count: int,
    amp: HalfName | None,
    loss_scale: float,
) -> TrainingOutput:
    """Add a batch's share of the gradient to what is there."""
    with half_layers(network, amp):
        with half_forward(amp):
            output = network(*training_arguments(batch), iteration=iteration)
        loss = sum(output.losses.values())
        loss = loss if batch_count == 1 else loss / batch_count
        (loss if loss_scale == 1 else loss * loss_scale).backward()
    return output


def _read(outputs: Sequence[TrainingOutput], squares: Tensor) -> tuple[list[Step], float]:
    """All numbers of a step, with one transfer from the device: what each batch gave, and the gradients' joint norm."""
    scalars = [value for output in outputs for value in (*output.losses.values(), *output.metrics.values())]
    stacked = paddle.stack([value.detach().astype("float32") for value in scalars])
    numbers = iter(paddle.concat([stacked, squares]).tolist())
    parts = [
        Step(*({name: next(numbers) for name in values} for values in (output.losses, output.metrics)))
        for output in outputs
    ]
    return parts, math.sqrt(sum(numbers))


def _finite_means(
    parts: Sequence[Step], batches: Sequence[Mapping[str, Any]], clip_norm: float | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Losses and metrics of this rank's batches. Raises NotFinite."""
    for part, batch in zip(parts, batches, strict=True):
        _require_finite("a loss", part.losses, part.losses, [batch], clip_norm)
    return _means(parts)


def _means(parts: Sequence[Step]) -> tuple[dict[str, float], dict[str, float]]:
    return _mean([part.losses for part in parts]), _mean([part.metrics for part in parts])


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number over the parts that have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    found = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def _average_over_ranks(network: nn.Layer) -> None:
    """Give every rank the mean gradients, and the mean running statistics of norms, so that all stay the same.

    Where some ranks have no gradient of a parameter, theirs counts as 0; where none has, it stays without.
    """
    if ranks.world() == 1:
        return
    trained = {name: p for name, p in network.named_parameters() if not p.stop_gradient}
    without = ranks.together(lambda: {name for name, parameter in trained.items() if parameter.grad is None})
    shared = [parameter for name, parameter in trained.items() if name not in set.intersection(*without)]
    for parameter in shared:
        if parameter.grad is None:
            parameter.grad = paddle.zeros_like(parameter)
    ranks.average([*(parameter.grad for parameter in shared), *running_statistics(network)])


def batch_seed(seed: int, number: int) -> int:
    """The seed of the sampling in a batch, by its number in the run, whoever has it; resuming needs no more state."""
    return int(np.random.SeedSequence((seed, number, 0)).generate_state(1)[0])


def _require_finite(
    what: str,
    values: Mapping[str, float],
    losses: Mapping[str, float],
    batches: Sequence[Mapping[str, Any]],
    clip_norm: float | None,
) -> None:
    if not np.isfinite(list(values.values())).all():
        shown = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        raise NotFinite(
            f"{what} is not finite: {shown}; image ids {[i for part in batches for i in part['image_ids'].tolist()]}; "
            f"lower optimizer.base_lr, lengthen the warm-up, or {'set' if clip_norm is None else 'lower'} "
            "optimizer.clip_norm"
        )
