"""What memory a run takes, and what to do when it is not enough."""

import contextlib
from collections.abc import Iterator

import paddle

from ppdet_lite.core import runtime
from ppdet_lite.core.errors import RunFailed

SIGNS = ("resourceexhausted", "out of memory", "alloc_failed", "badalloc")  # of it, in what Paddle raises for a GPU
REMEDIES = (
    "lower data.loader.batch_size (train.accumulate makes up for it), "
    "or data.augment.short_sides, data.preprocess.short_side and long_side"
)


def peak_memory_mb() -> float:
    """The most that has been in use so far, in MiB: a GPU's by tensors, else this process's resident memory."""
    if paddle.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / 2**20
    return runtime.peak_rss_mb()


@contextlib.contextmanager
def exhaustion_told(where: str) -> Iterator[None]:
    """Inside this block running out of memory raises RunFailed: one line with remedies."""
    try:
        yield
    except (MemoryError, RuntimeError, SystemError, OSError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in SIGNS):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if "alloc" in line.lower()), "")
        raise RunFailed(f"out of memory in {where}: {reason or 'no more was given'}; {REMEDIES}") from error
