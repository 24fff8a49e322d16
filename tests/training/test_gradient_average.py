"""Gradients of two processes are averaged while the backward pass goes on, and no process waits for one that failed."""

import json
import time

import pytest

from ppdet_lite.assembly import ranks as product
from tests import ranks


def test_buckets_start_early_with_the_means_of_those_that_start_late() -> None:
    """See `average_worker`, which compares gradients bit by bit, and makes one process fail in several ways."""
    processes = ranks.start(2, str(ranks.ROOT / "tests/training/average_worker.py"))
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    one, two = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert one.keys() == two.keys() == {"accumulated", "partial"}
    for case, found in one.items():
        assert found == two[case]  # also the order of reductions, whatever the images contain
        assert found["early"] == found["buckets"] - 1 == 11, case  # all but the last, of the first layers


@pytest.mark.parametrize("library", ["gloo", "nccl"])
def test_a_rank_does_not_wait_in_forward_for_one_that_failed(library: str) -> None:
    """See `abandoned_worker`, which shortens the times whose sum is checked here."""
    assert product.PATIENCE + 2 * (1 + product.GRACE) < 30
    processes = ranks.start(2, str(ranks.ROOT / "tests/training/abandoned_worker.py"), library)
    try:
        (zero, _), (one, errors) = (process.communicate(timeout=120) for process in processes)
    finally:
        for process in processes:
            process.kill()
    took = time.monotonic() - float(one.splitlines()[-1])
    assert took < 30
    assert [process.returncode for process in processes] == [1, 1] and "nobody thought of this" in errors
    if library == "nccl":
        line = zero.splitlines()[-1]
        assert "ERROR rank 1: ValueError: nobody thought of this; this rank waited for it in a reduction" in line
