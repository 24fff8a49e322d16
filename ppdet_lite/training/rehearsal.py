"""The rehearsal of the largest batch: a run that does not fit into memory ends in its first minute, not at night."""

import contextlib
import time
from collections.abc import Iterator

import paddle

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.loading.transforms import Batch
from ppdet_lite.modeling.amp import HalfName, half_forward, half_layers
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import STATISTICS
from ppdet_lite.optimization.optimizer import ACCUMULATORS
from ppdet_lite.training.memory import exhaustion_told, peak_memory_mb


def rehearse(
    model: FasterRCNN,
    optimizer: paddle.optimizer.Optimizer,
    batch: Batch,
    gradient_copies: int = 0,
    amp: HalfName | None = None,
) -> None:
    """Go forward and backward on a batch, with all the memory taken that later steps have beside it; log how much.

    The model, its optimizer and the random numbers are afterwards as they were. gradient_copies: what a step holds of
    gradients beside those of the batch, such as the accumulated ones. amp: see `half`.

    Raises RunFailed when memory does not suffice.
    """
    began = time.perf_counter()
    count, _, height, width = batch["images"].shape
    objects = max(len(target["boxes"]) for target in batch["targets"])
    what = f"a step of {count} images of {height}x{width} (height x width) with {objects} objects each"
    with exhaustion_told(f"the rehearsal of {what}"), _unchanged(model):
        copies = gradient_copies + (0 if optimizer.state_dict() else _moments(optimizer))
        trained = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
        held = [paddle.zeros_like(parameter) for parameter in trained for _ in range(copies)]
        model.train()
        with half_layers(model, amp):
            with half_forward(amp):
                losses = model(*training_arguments(batch)).losses
            sum(losses.values()).backward()
        del held
    get_logger().info(
        "rehearsed %s, the largest to come: %.1f s, peak memory %.2f GiB",
        *(what, time.perf_counter() - began, peak_memory_mb() / 1024),
    )


def _moments(optimizer: paddle.optimizer.Optimizer) -> int:
    """How many numbers an optimizer keeps of each weight once it has made a step."""
    return sum(not name.endswith("_pow_acc") for name in ACCUMULATORS[type(optimizer)])


@contextlib.contextmanager
def _unchanged(model: FasterRCNN) -> Iterator[None]:
    """What a forward and a backward change is put back: statistics of norms, gradients, random numbers."""
    statistics = {name: value for name, value in model.state_dict().items() if name.endswith(STATISTICS)}
    before = {name: value.clone() for name, value in statistics.items()}
    states = paddle.get_rng_state()
    try:
        yield
    finally:
        model.clear_gradients(set_to_zero=False)
        for name, value in statistics.items():
            value.set_value(before[name])
        paddle.set_rng_state(states)
