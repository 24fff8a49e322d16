"""Benchmark of data loading: images per second by number of threads, and in comparison with Paddle's DataLoader."""

import dataclasses
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from paddle import io

from ppdet_lite.assembly.batch_tensors import training_arguments
from ppdet_lite.assembly.recipe import Data
from ppdet_lite.assembly.setup import build_dataset, build_model, log_notes
from ppdet_lite.benchmarks.timing import WARM_UP
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core.runtime import peak_rss_mb
from ppdet_lite.data.loading.augment import train_sample
from ppdet_lite.data.loading.loader import TrainBatches
from ppdet_lite.data.loading.transforms import Sample, collate

ROUNDS = 5  # measurements per loader
TIMEOUT = 120  # seconds to wait for a DataLoader process; without it, DataLoader waits forever


def bench_data(config: Config, iterations: int, threads: Sequence[int] = (0, 1, 2), workers: int = 0) -> dict[str, Any]:
    """Measure how many training images per second the loader produces, for several numbers of threads.

    Returns `images_per_second` by number of threads, and the peak memory. Batches contain the original images if the
    config's model requires them.

    workers: if not 0, also measure `paddle.io.DataLoader` with this number of processes on the same batches, and the
    loader with as many threads, both including the conversion to tensors. Adds `as_tensors`: images per second of
    `threads` and of `processes` (medians of ROUNDS), and their ratio.
    """
    dataset = build_dataset(config, "train")
    log_notes(dataset)
    keep_original = build_model(config, dataset.class_names).needs_originals
    data = build(config["data"], train=dataset, val=None)

    def batches(count: int) -> TrainBatches:
        loader = dataclasses.replace(data.loader, threads=count)
        seed = config["runtime"]["seed"]
        return TrainBatches(dataset, data.preprocess, data.augment, loader, seed, keep_original=keep_original)

    size, rates = data.loader.batch_size, {}
    # Before the loop below: no thread of ours may exist when DataLoader forks.
    comparison = {"as_tensors": _compare_with_dataloader(data, batches(workers), iterations)} if workers else {}
    for count in threads:
        stream = batches(count).iterate()
        rates[str(count)] = size * _rate(stream, iterations, 2 * count)
        stream.close()
    return {"images_per_second": rates, "batch": size, **comparison, "peak_rss_mb": peak_rss_mb()}


def _compare_with_dataloader(data: Data, batches: TrainBatches, iterations: int) -> dict[str, float]:
    """Measure images per second and CPU milliseconds per image of our threads and of as many DataLoader processes."""
    count, size = batches.loader.threads, batches.loader.batch_size
    ahead = max(WARM_UP, 2 * count)  # batches that a loader prefetches
    rates, costs = {"threads": [], "processes": []}, {"threads": [], "processes": []}
    for _ in range(ROUNDS):
        before = _processor_seconds()
        dataloader = io.DataLoader(
            _Samples(data, batches.keep_original),
            batch_sampler=[batches.indices(i).tolist() for i in range(iterations + 2 * ahead)],
            collate_fn=partial(collate, preprocess=data.preprocess),
            num_workers=count,
            timeout=TIMEOUT,
        )
        stream = iter(dataloader)
        rates["processes"].append(size * _rate(stream, iterations, ahead))
        for _ in stream:  # exhaust it: otherwise its processes may not end
            pass
        for process in multiprocessing.active_children():
            process.join(TIMEOUT)
        costs["processes"].append((_processor_seconds() - before) / (iterations + 2 * ahead) / size)
    # After DataLoader: a process forked while one of our threads ends can inherit a lock that is never released.
    for _ in range(ROUNDS):
        before = _processor_seconds()
        stream = batches.iterate()
        rates["threads"].append(size * _rate(stream, iterations, ahead, training_arguments))
        stream.close()
        costs["threads"].append((_processor_seconds() - before) / (iterations + ahead) / size)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    medians["ratio"] = medians["threads"] / medians["processes"]
    return medians | {f"{name}_processor_ms": 1e3 * statistics.median(values) for name, values in costs.items()}


def _processor_seconds() -> float:
    """Return the CPU time of this process and of its finished child processes."""
    return time.process_time() + sum(os.times()[2:4])  # that of children has a resolution of 0.01 s


class _Samples(io.Dataset):
    """The training images as a dataset for DataLoader. Augmentation is seeded by the index."""

    def __init__(self, data: Data, keep_original: bool) -> None:
        self.data, self.keep_original = data, keep_original

    def __len__(self) -> int:
        return len(self.data.train)

    def __getitem__(self, index: int) -> Sample:
        data, rng = self.data, np.random.default_rng(index)
        return train_sample(data.train, index, data.preprocess, data.augment, rng, self.keep_original)


def _rate(stream: Iterator[Any], iterations: int, ahead: int, use: Callable[[Any], Any] = lambda batch: batch) -> float:
    """Return the batches per second of a new stream, measured after the batches that it prefetches."""
    for _ in range(max(WARM_UP, ahead)):
        use(next(stream))
    start = time.perf_counter()
    for _ in range(iterations):
        use(next(stream))
    return iterations / (time.perf_counter() - start)
