"""Batches for training and evaluation, prefetched by threads.

OpenCV releases the GIL, so threads load in parallel. There are no worker processes that could be orphaned and no shared
memory that could run out. A batch depends only on (seed, iteration, rank), not on the number of threads or on resuming.
"""

import itertools
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Literal

import cv2
import numpy as np
from pydantic import Field

from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.augment import Augment, train_sample
from ppdet_lite.data.loading.bad_images import MIN_READ, BadImages, mostly_bad_message
from ppdet_lite.data.loading.transforms import Batch, Preprocess, Sample, View, collate


@register
@dataclass(frozen=True)
class Loader:
    """Settings for loading batches.

    batch_size: images per device.
    threads: number of loading threads. 0 disables prefetching: each batch is loaded when it is requested.
    timeout: seconds to wait for a batch before the run ends with the path of the image that is stuck.
    on_bad_image: what happens when a training image is missing, damaged or not of the annotated size. `error` ends the
        run; `skip` logs a warning and uses the next image of the epoch instead. Even with `skip`, the run ends when
        most images are bad. Evaluation always ends at a bad image.
    group_by_aspect: train on batches of only landscape or only portrait images, which need less padding.
    """

    batch_size: Annotated[int, Field(gt=0, le=4096)] = 1
    threads: Annotated[int, Field(ge=0, le=256)] = 2
    timeout: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)] = 120.0
    on_bad_image: Literal["error", "skip"] = "error"
    group_by_aspect: bool = True


class TrainBatches:
    """Endless training batches; iteration i belongs to epoch i // iterations_per_epoch.

    For every epoch the dataset draws its images in a random order that depends on (seed, epoch). They are split into
    batches of one orientation, except for one mixed batch with the remainders of both, and distributed over the ranks
    round-robin. Images that do not fill a batch on every rank are left out of the epoch; which ones is random. If there
    are fewer images than all ranks need for one iteration, images repeat within it.

    With loader.on_bad_image: skip, a bad image is replaced by the next good one of its epoch, augmented the same way as
    at its own position.

    keep_original adds `original_images` and `flipped` to a batch, for patches in original resolution.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        preprocess: Preprocess,
        augment: Augment,
        loader: Loader,
        seed: int,
        rank: int = 0,
        world: int = 1,
        keep_original: bool = False,
    ) -> None:
        if keep_original and augment.scale_jitter is not None:
            raise UserError(
                "data.augment.scale_jitter does not keep the original images from which model.mimic crops its patches; "
                "set model.mimic.crop_from to network"
            )
        self.dataset, self.preprocess, self.augment, self.loader = dataset, preprocess, augment, loader
        self.seed, self.rank, self.world, self.keep_original = seed, rank, world, keep_original
        self.iterations_per_epoch = max(dataset.epoch_length // (loader.batch_size * world), 1)
        self.bad_images = BadImages(len(dataset))
        self._epoch = (-1, np.empty(0))  # number and batches of the epoch used last

    def iterate(self, start_iteration: int = 0) -> "BatchIterator":
        """Return the batches from an iteration on, identical to those of an uninterrupted run."""
        return BatchIterator(self._jobs(start_iteration), self.dataset, self.preprocess, self.loader, self.bad_images)

    def indices(self, iteration: int) -> np.ndarray:
        """Return the dataset indices [batch_size] of this rank's batch at an iteration."""
        batches, row = self._find(iteration)
        return batches[row] % len(self.dataset)

    def _find(self, iteration: int) -> tuple[np.ndarray, int]:
        """Return the batches of an iteration's epoch, see `_batches`, and the row of this rank's batch."""
        epoch, step = divmod(iteration, self.iterations_per_epoch)
        cached_epoch, batches = self._epoch
        if cached_epoch != epoch:
            batches = self._batches(epoch)
            self._epoch = (epoch, batches)
        return batches, step * self.world + self.rank

    def _batches(self, epoch: int) -> np.ndarray:
        """Return the draws [iterations_per_epoch * world, batch_size] of an epoch, see `CocoDataset.draw_epoch`."""
        size = self.loader.batch_size
        order = self.dataset.draw_epoch(np.random.default_rng((self.seed, epoch, 0)))
        order = np.resize(order, self.iterations_per_epoch * self.world * size)  # truncates, or repeats from the start
        portrait = np.zeros(len(order), bool)
        if self.loader.group_by_aspect:
            height, width = self.dataset.sizes[order % len(self.dataset)].T
            portrait = height > width
        groups = [np.flatnonzero(portrait), np.flatnonzero(~portrait)]
        full = [group[: len(group) // size * size] for group in groups]
        remainders = [group[len(group) // size * size :] for group in groups]
        positions = np.concatenate(full + remainders).reshape(-1, size)
        return order[positions[np.argsort(positions.max(axis=1))]]  # sorted by when a batch becomes full

    def _jobs(self, start: int) -> Iterator["_Job"]:
        for iteration in itertools.count(start):
            sample = partial(self._sample, iteration // self.iterations_per_epoch)
            batches, row = self._find(iteration)
            replacements = partial(self._following, batches, row) if self.loader.on_bad_image == "skip" else None
            yield _Job(batches[row].tolist(), sample, replacements)

    def _following(self, batches: np.ndarray, row: int, column: int) -> list[int]:
        """Return the draws of other images that follow a position in the epoch's batches, wrapping at the end."""
        order = np.roll(batches.ravel(), -(row * batches.shape[1] + column))
        images = order % len(self.dataset)
        return list(dict.fromkeys(order[images != images[0]].tolist()))

    def _sample(self, epoch: int, draw: int) -> Sample:
        rng = np.random.default_rng((self.seed, epoch, draw + 1))  # (seed, epoch, 0) is the order of the epoch
        index = draw % len(self.dataset)
        return train_sample(self.dataset, index, self.preprocess, self.augment, rng, self.keep_original)


class EvalBatches:
    """Every image of a dataset once, preprocessed for evaluation.

    All images of a batch have the same padded size, so each is padded as it would be alone and its detections do not
    depend on the batch size. The order of images is therefore only roughly that of the dataset. Each of several ranks
    takes every world-th batch.

    views: variants of the preprocessing for test-time augmentation; each batch is returned once per view. None: one
        view, the preprocessing itself.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        preprocess: Preprocess,
        loader: Loader,
        rank: int = 0,
        world: int = 1,
        views: Sequence[View] | None = None,
    ) -> None:
        self.dataset, self.preprocess, self.loader = dataset, preprocess, loader
        self._views = [View(preprocess)] if views is None else list(views)
        self._batches = _batches_by_padded_size(dataset.sizes, self._views, loader.batch_size)[rank::world]

    def __len__(self) -> int:
        """Return the number of batches. The last batch of each padded size may be smaller than batch_size."""
        return len(self._batches) * len(self._views)

    @property
    def image_count(self) -> int:
        """The number of images in this rank's batches."""
        return sum(map(len, self._batches))

    def iterate(self) -> "BatchIterator":
        """Return the batches without targets, each once per view."""
        return self._iterate([partial(view.sample, self.dataset) for view in self._views])

    def iterate_with_targets(self, keep_original: bool = False) -> "BatchIterator":
        """Return the batches with targets, as in training but without augmentation."""
        unchanged, rng = Augment(flip=0.0), np.random.default_rng(0)
        return self._iterate(
            [lambda index: train_sample(self.dataset, index, self.preprocess, unchanged, rng, keep_original)]
        )

    def _iterate(self, samples: Sequence[Callable[[int], Sample]]) -> "BatchIterator":
        jobs = (_Job(indices, sample) for indices in self._batches for sample in samples)
        return BatchIterator(jobs, self.dataset, self.preprocess, self.loader)


def _batches_by_padded_size(sizes: np.ndarray, views: Sequence[View], batch_size: int) -> list[list[int]]:
    """Group images of sizes [N, 2] (h, w) into batches with one padded size per view, sorted by their first image."""
    groups: dict[tuple, list[int]] = {}
    for index, size in enumerate(sizes.tolist()):
        padded = [view.preprocess.padded_size(view.preprocess.resized_size(*size)).tolist() for view in views]
        groups.setdefault(tuple(map(tuple, padded)), []).append(index)
    batches = [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
    return sorted(batches)


@dataclass
class _Job:
    """One batch to load.

    draws: the images of the batch; a draw modulo the length of the dataset is an index.
    replacements: returns the draws that may replace the one at a position; None if a bad image is an error.
    """

    draws: Sequence[int]
    sample: Callable[[int], Sample]
    replacements: Callable[[int], Sequence[int]] | None = None
    read: list[int] = field(default_factory=list)  # indices of the images read
    bad: dict[int, str] = field(default_factory=dict)  # index of each replaced image -> reason
    current: int | None = None  # index of the image being loaded, for the message of a timeout
    result: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)  # receives one Batch or Exception


class BatchIterator:
    """An iterator over batches in order, which prefetches two batches per thread.

    An error in loading is raised when its batch is due, and ends the iteration: a UserError unchanged, any other error
    as RuntimeError with the image's path. RunFailed is raised when a batch takes longer than the timeout. The threads
    end with `close()`, with garbage collection, and with the program.
    """

    def __init__(
        self,
        jobs: Iterator[_Job],
        dataset: CocoDataset,
        preprocess: Preprocess,
        loader: Loader,
        bad_images: BadImages | None = None,
    ) -> None:
        self._jobs, self._dataset, self._loader, self._bad_images = jobs, dataset, loader, bad_images
        self._ahead = 2 * loader.threads or 1  # one thread loads even with threads = 0, so that the timeout works
        self._pending: deque[_Job] = deque()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._stop = threading.Event()
        # Daemon threads, so that a stuck one does not keep the program alive. They hold no reference to the iterator,
        # which could otherwise never be garbage-collected.
        arguments = (self._queue, self._stop, dataset, preprocess)
        name = "ppdet_lite loader"
        count = max(loader.threads, 1)
        threads = [threading.Thread(target=_work, args=arguments, name=name, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        self._shut_down = weakref.finalize(self, _shut_down, self._stop, self._queue, threads)

    def __iter__(self) -> "BatchIterator":
        return self

    def __next__(self) -> Batch:
        if self._stop.is_set():
            raise StopIteration
        try:
            return self._next()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the threads. A stuck thread is abandoned."""
        self._shut_down()
        self._pending.clear()

    def _next(self) -> Batch:
        for job in itertools.islice(self._jobs, self._ahead - len(self._pending)):
            self._pending.append(job)
            self._queue.put(job)
        if not self._pending:
            raise StopIteration
        job = self._pending.popleft()
        try:
            result = job.result.get(timeout=self._loader.timeout)
        except queue.Empty:
            path = self._dataset.info(job.draws[0] % len(self._dataset) if job.current is None else job.current).path
            limit = f"{self._loader.timeout:g} seconds (data.loader.timeout)"
            raise RunFailed(f"{path}: not loaded within {limit}; check whether its storage responds") from None
        if isinstance(result, Exception):
            raise result
        if self._bad_images is not None:  # not in the threads, so that the log has one order for any number of them
            self._bad_images.record(job.read, job.bad)
        return result


def _load(job: _Job, stop: threading.Event, dataset: CocoDataset, preprocess: Preprocess) -> Batch | None:
    """Return the batch of a job, or None if the iterator is closed in the meantime."""
    samples = []
    for position in range(len(job.draws)):
        if stop.is_set():
            return None
        samples.append(_good_sample(job, position, dataset))
    return collate(samples, preprocess)


def _good_sample(job: _Job, position: int, dataset: CocoDataset) -> Sample:
    """Return the sample at a position of the batch or, if its image is bad, of the first good replacement."""
    try:
        return _sample(job, job.draws[position], dataset)
    except UserError as error:
        if job.replacements is None:
            raise
        assert job.current is not None  # `_sample` sets it first
        bad = {job.current: str(error)}
    for draw in job.replacements(position)[: MIN_READ - 1]:
        try:
            sample = _sample(job, draw, dataset)
        except UserError as error:
            bad[job.current] = str(error)
        else:
            job.bad |= bad
            return sample
    raise UserError(mostly_bad_message(len(bad), len(bad), next(iter(bad.values()))))


def _sample(job: _Job, draw: int, dataset: CocoDataset) -> Sample:
    job.current = draw % len(dataset)
    job.read.append(job.current)
    try:
        return job.sample(draw)
    except UserError:
        raise
    except MemoryError as error:
        raise MemoryError(f"{dataset.info(job.current).path}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"{dataset.info(job.current).path}: {type(error).__name__}: {error}") from error


def _work(jobs: queue.SimpleQueue, stop: threading.Event, dataset: CocoDataset, preprocess: Preprocess) -> None:
    # OpenCV's own threads (a process-wide setting) compete with the loading threads: on two cores, two loading threads
    # read 234 images/s without them and 218 with them. A single loading thread reads 130 images/s either way.
    cv2.setNumThreads(0)
    while (job := jobs.get()) is not None:
        try:
            job.result.put(_load(job, stop, dataset, preprocess))
        except Exception as error:
            job.result.put(error)


def _shut_down(stop: threading.Event, jobs: queue.SimpleQueue, threads: Sequence[threading.Thread]) -> None:
    stop.set()
    for _ in threads:
        jobs.put(None)
    deadline = time.monotonic() + 2  # a thread ends after its current image, unless that image is stuck
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
