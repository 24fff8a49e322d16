"""The benchmark of loading: images per second by the number of threads, and beside Paddle's own DataLoader."""

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

ROUNDS = 5  # of either loader
TIMEOUT = 120  # seconds to wait for a process of DataLoader, which would wait for ever


def bench_data(config: Config, iterations: int, threads: Sequence[int] = (0, 1, 2), workers: int = 0) -> dict[str, Any]:
    """Measure how many training images per second the loader makes, with different numbers of threads.

    Returns `images_per_second` by the number of threads, and the peak memory. Original images go along where the
    config's model takes them.

    workers: also let `paddle.io.DataLoader` with so many processes make the same batches, by the same functions, in
    turns with as many threads of ours; both up to tensors. Adds `as_tensors`: images per second of `threads` and of
    `processes`, medians of ROUNDS, and the ratio of these.
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
    beside = {"as_tensors": _beside_paddle(data, batches(workers), iterations)} if workers else {}  # first, see there
    for count in threads:
        stream = batches(count).iterate()
        rates[str(count)] = size * _rate(stream, iterations, 2 * count)
        stream.close()
    return {"images_per_second": rates, "batch": size, **beside, "peak_rss_mb": peak_rss_mb()}


def _beside_paddle(data: Data, batches: TrainBatches, iterations: int) -> dict[str, float]:
    """Images per second and processor milliseconds per image of our threads and of as many processes of Paddle's."""
    count, size = batches.loader.threads, batches.loader.batch_size
    ahead = max(WARM_UP, 2 * count)  # batches, of either
    rates, costs = {"threads": [], "processes": []}, {"threads": [], "processes": []}
    for _ in range(ROUNDS):
        before = _processor_seconds()
        theirs = io.DataLoader(
            _Samples(data, batches.keep_original),
            batch_sampler=[batches.indices(i).tolist() for i in range(iterations + 2 * ahead)],
            collate_fn=partial(collate, preprocess=data.preprocess),
            num_workers=count,
            timeout=TIMEOUT,
        )
        stream = iter(theirs)
        rates["processes"].append(size * _rate(stream, iterations, ahead))
        for _ in stream:  # to the end: its processes may not end otherwise
            pass
        for process in multiprocessing.active_children():
            process.join(TIMEOUT)
        costs["processes"].append((_processor_seconds() - before) / (iterations + 2 * ahead) / size)
    # Not in turns: a process that is forked while one of our threads ends can inherit a lock that nobody opens.
    for _ in range(ROUNDS):
        before = _processor_seconds()
        ours = batches.iterate()
        rates["threads"].append(size * _rate(ours, iterations, ahead, training_arguments))
        ours.close()
        costs["threads"].append((_processor_seconds() - before) / (iterations + ahead) / size)
    found = {name: statistics.median(values) for name, values in rates.items()}
    found["ratio"] = found["threads"] / found["processes"]
    return found | {f"{name}_processor_ms": 1e3 * statistics.median(values) for name, values in costs.items()}


def _processor_seconds() -> float:
    """What this process and its children that have ended have used."""
    return time.process_time() + sum(os.times()[2:4])  # of children it is known in hundredths alone


class _Samples(io.Dataset):
    """The training images as DataLoader takes them; what varies is drawn from the index."""

    def __init__(self, data: Data, keep_original: bool) -> None:
        self.data, self.keep_original = data, keep_original

    def __len__(self) -> int:
        return len(self.data.train)

    def __getitem__(self, index: int) -> Sample:
        data, rng = self.data, np.random.default_rng(index)
        return train_sample(data.train, index, data.preprocess, data.augment, rng, self.keep_original)


def _rate(stream: Iterator[Any], iterations: int, ahead: int, use: Callable[[Any], Any] = lambda batch: batch) -> float:
    """Batches per second of a fresh stream, once those are through that it loads ahead."""
    for _ in range(max(WARM_UP, ahead)):
        use(next(stream))
    began = time.perf_counter()
    for _ in range(iterations):
        use(next(stream))
    return iterations / (time.perf_counter() - began)
