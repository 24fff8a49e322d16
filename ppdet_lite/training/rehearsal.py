"""The rehearsal of a step on the largest batch: a run that does not fit into memory fails in its first minute."""

import contextlib
import time
from collections.abc import Iterator

import paddle

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.loading.transforms import Batch
from ppdet_lite.modeling.amp import AmpDtype, autocast_forward, bfloat16_layers
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import copy_running_statistics
from ppdet_lite.optimization.optimizer import ACCUMULATORS
from ppdet_lite.training.memory import memory_errors_reported, peak_memory_mb


def rehearse(
    model: FasterRCNN,
    optimizer: paddle.optimizer.Optimizer,
    batch: Batch,
    gradient_copies: int = 0,
    amp: AmpDtype | None = None,
) -> None:
    """Run forward and backward on a batch, while the other memory of a training step is allocated; log the peak.

    The model, its optimizer and the random state are restored afterwards.

    gradient_copies: number of copies of all gradients that a step stores in addition, such as accumulated gradients.
    amp: see `modeling.amp`.

    Raises RunFailed when memory runs out.
    """
    start = time.perf_counter()
    count, _, height, width = batch["images"].shape
    objects = max(len(target["boxes"]) for target in batch["targets"])
    description = f"a step of {count} images of {height}x{width} (height x width) with {objects} objects each"
    with memory_errors_reported(f"the rehearsal of {description}"), _unchanged(model):
        copies = gradient_copies + (0 if optimizer.state_dict() else _moments(optimizer))
        trained = [parameter for parameter in model.parameters() if not parameter.stop_gradient]
        reserved = [paddle.zeros_like(parameter) for parameter in trained for _ in range(copies)]
        model.train()
        with bfloat16_layers(model, amp):
            with autocast_forward(amp):
                losses = model(*training_arguments(batch)).losses
            sum(losses.values()).backward()
        del reserved
    seconds, memory = time.perf_counter() - start, peak_memory_mb() / 1024
    get_logger().info("rehearsed %s, the largest possible: %.1f s, peak memory %.2f GiB", description, seconds, memory)


def _moments(optimizer: paddle.optimizer.Optimizer) -> int:
    """Return the number of values that an optimizer stores per weight after its first step."""
    return sum(not name.endswith("_pow_acc") for name in ACCUMULATORS[type(optimizer)])


@contextlib.contextmanager
def _unchanged(model: FasterRCNN) -> Iterator[None]:
    """Restore running statistics and the random state after the block, and clear the gradients."""
    restore_statistics = copy_running_statistics(model)
    states = paddle.get_rng_state()
    try:
        yield
    finally:
        model.clear_gradients(set_to_zero=False)
        restore_statistics()
        paddle.set_rng_state(states)
