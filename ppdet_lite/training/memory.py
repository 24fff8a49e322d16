"""Peak memory, and out-of-memory errors in one line."""

import contextlib
from collections.abc import Iterator

import paddle

from ppdet_lite.core import runtime
from ppdet_lite.core.errors import RunFailed

SIGNS = ("resourceexhausted", "out of memory", "alloc_failed", "badalloc", "insufficient memory")  # Paddle's, OpenCV's
REMEDIES = (
    "lower data.loader.batch_size (train.accumulate makes up for it), "
    "or data.augment.short_sides, data.preprocess.short_side and long_side"
)


def peak_memory_mb() -> float:
    """Return the peak memory so far in MiB: of tensors on a GPU, otherwise the resident memory of this process."""
    if paddle.get_device().startswith("gpu"):
        return paddle.device.cuda.max_memory_allocated() / 2**20
    return runtime.peak_rss_mb()


@contextlib.contextmanager
def memory_errors_reported(where: str) -> Iterator[None]:
    """Raise RunFailed, one line with remedies, when memory runs out inside this block. where: names the block."""
    try:
        yield
    except (MemoryError, RuntimeError, SystemError, OSError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in SIGNS):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if "alloc" in line.lower()), "")
        raise RunFailed(f"out of memory in {where}: {reason or 'an allocation failed'}; {REMEDIES}") from error
