"""One training step: forward, backward, update."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.core.errors import InterruptedUpdate, NotFinite
from ppdet_lite.modeling.amp import AmpDtype, autocast_forward, bfloat16_layers
from ppdet_lite.modeling.faster_rcnn import TrainingOutput
from ppdet_lite.modeling.norm import running_statistics
from ppdet_lite.optimization.optimizer import scale_gradients, squared_gradient_norms
from ppdet_lite.structures import Patches
from ppdet_lite.training.gradient_average import GradientAverage, average_tensors
from ppdet_lite.training.memory import memory_errors_reported


class Step(NamedTuple):
    """The results of a training step."""

    losses: dict[str, float]
    metrics: dict[str, float]
    patches: Patches | None = None  # the input of the R-CNN teacher, if there is one
    overflowed: bool = False  # a gradient exceeded float16's range, and no weight was updated


def train_step(
    network: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    batch: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    clip_norm: float | None = None,
    iteration: int | None = None,
    seeds: Sequence[int] = (),
    amp: AmpDtype | None = None,
    loss_scale: float = 1.0,
) -> Step:
    """Take one training step on a batch of the loader, or on several, which are accumulated.

    Gradients, losses and metrics are averaged over the batches and, in a distributed run, over the ranks.

    iteration: number of completed steps, see `FasterRCNN.forward`.
    seeds: seed of the random sampling in each batch; by default the generator is not seeded.
    amp: see `modeling.amp`.
    loss_scale: multiplies the loss of the backward pass. Above 1, gradients that are not finite skip the update, on all
        ranks alike, since their averaged gradients are equal.

    Raises NotFinite, before any weight is updated, when a loss or a gradient is not finite. Checking losses alone would
    miss cases: on a CPU Paddle's ReLU turns NaN into 0, so a network with NaN weights can have finite losses. Raises
    InterruptedUpdate when some weights may be updated and others not.
    """
    batches = [batch] if isinstance(batch, Mapping) else batch
    outputs: list[TrainingOutput] = []
    average = GradientAverage(network)

    def forward_backward() -> set[str]:
        with memory_errors_reported("training"), average.all_started():
            for i, part in enumerate(batches):
                if seeds:
                    paddle.seed(seeds[i])
                with bfloat16_layers(network, amp):
                    with autocast_forward(amp):
                        output = network(*training_arguments(part), iteration=iteration)
                    loss = sum(output.losses.values()) / len(batches) * loss_scale
                    with average.during_backward() if i + 1 == len(batches) else contextlib.nullcontext():
                        loss.backward()
                outputs.append(output)
        return average.missing

    missing = ranks.on_all_ranks(forward_backward, reduces=average.has_sync_bn)  # an error on one rank is raised on all
    with ranks.watched():
        average.finish(missing)
        average_tensors(running_statistics(network))
        results, scaled_norm = _read(outputs, squared_gradient_norms(network))
    gradient_norm = scaled_norm / loss_scale
    if loss_scale > 1 and not math.isfinite(gradient_norm):
        optimizer.clear_grad(set_to_zero=False)
        return Step(*_means(results), overflowed=True)
    by_rank = ranks.on_all_ranks(lambda: _finite_means(results, batches, clip_norm))
    losses, metrics = map(_mean, zip(*by_rank, strict=True))
    _require_finite("a gradient", {"norm": gradient_norm}, losses, batches, clip_norm)
    clipped = 1.0 if clip_norm is None or gradient_norm <= clip_norm else clip_norm / gradient_norm
    scale_gradients(network, clipped / loss_scale)
    with updating("the weights"):
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
    return Step(losses, {**metrics, "gradient_norm": gradient_norm}, outputs[-1].patches)


@contextlib.contextmanager
def updating(what: str) -> Iterator[None]:
    """Raise InterruptedUpdate for any error inside the block, which may leave `what` partly updated."""
    try:
        with memory_errors_reported(f"the update of {what}"):
            yield
    except Exception as error:
        raise InterruptedUpdate(f"the update of {what} failed ({error}); resume from the last checkpoint") from error


def _read(outputs: Sequence[TrainingOutput], squares: Tensor) -> tuple[list[Step], float]:
    """Read losses and metrics of each batch and the joint norm of all gradients, in one transfer from the device."""
    scalars = [value for output in outputs for value in (*output.losses.values(), *output.metrics.values())]
    stacked = paddle.stack([value.detach().astype("float32") for value in scalars])
    numbers = iter(paddle.concat([stacked, squares]).tolist())
    results = [
        Step(*({name: next(numbers) for name in values} for values in (output.losses, output.metrics)))
        for output in outputs
    ]
    return results, math.sqrt(sum(numbers))


def _finite_means(
    parts: Sequence[Step], batches: Sequence[Mapping[str, Any]], clip_norm: float | None
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the mean losses and metrics of this rank's batches. Raises NotFinite if a loss is not finite."""
    for part, batch in zip(parts, batches, strict=True):
        _require_finite("a loss", part.losses, part.losses, [batch], clip_norm)
    return _means(parts)


def _means(parts: Sequence[Step]) -> tuple[dict[str, float], dict[str, float]]:
    return _mean([part.losses for part in parts]), _mean([part.metrics for part in parts])


def _mean(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each number over the parts that contain it."""
    names = dict.fromkeys(name for part in parts for name in part)
    by_name = {name: [part[name] for part in parts if name in part] for name in names}
    return {name: sum(values) / len(values) for name, values in by_name.items()}


def batch_seed(seed: int, number: int) -> int:
    """Return the seed of the random sampling in a batch, which depends only on the batch's number in the whole run."""
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
