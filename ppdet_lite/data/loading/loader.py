"""Batches for training and evaluation, loaded ahead by threads.

OpenCV releases the interpreter's lock, so threads load in parallel; there are no worker processes to orphan and no
shared memory to exhaust. A batch depends on (seed, iteration, rank) alone: threads and resuming change nothing.
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
from typing import Literal

import cv2
import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from ppdet_lite.config.registry import register
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.augment import Augment, train_sample
from ppdet_lite.data.loading.bad_images import JUDGED, BadImages, mostly_bad
from ppdet_lite.data.loading.transforms import Batch, Preprocess, Sample, View, collate


@register
@dataclass(frozen=True)
class Loader:
    """How batches are loaded.

    batch_size: images per device.
    threads: loading threads; 0 loads nothing ahead, each batch when it is asked for.
    timeout: seconds to wait for a batch before the run ends with the name of the image that is stuck.
    on_bad_image: what becomes of a training image that is missing, damaged or of another size than annotated: the run
        ends with an `error`, or goes on with the next image of the epoch in its place (`skip`), told in the log. When
        most images are bad it ends all the same, and it does at any bad image in evaluation.
    group_by_aspect: train on batches of landscape or of portrait images, so that less is padded.
    """

    batch_size: PositiveInt = 1
    threads: NonNegativeInt = 2
    timeout: PositiveFloat = 120.0
    on_bad_image: Literal["error", "skip"] = "error"
    group_by_aspect: bool = True


class TrainBatches:
    """Endless training batches; iteration i belongs to epoch i // iterations_per_epoch.

    Every epoch is what the dataset draws for it, in an order from (seed, epoch), cut into batches of one orientation
    (the remainders of both meet in one mixed batch), which the ranks take in turn. What does not fill a batch on every
    rank is left out of that epoch, at random. With fewer images than all ranks take at once, they repeat within the
    batch.

    A bad image is replaced, if it is, by the next one of its epoch that is not, as that is augmented there.

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
                "data.augment.scale_jitter does not keep the original images that model.mimic cuts its patches out of; "
                "set model.mimic.crop_from to network"
            )
        self.dataset, self.preprocess, self.augment, self.loader = dataset, preprocess, augment, loader
        self.seed, self.rank, self.world, self.keep_original = seed, rank, world, keep_original
        self.iterations_per_epoch = max(dataset.epoch_length // (loader.batch_size * world), 1)
        self.bad_images = BadImages(len(dataset))
        self._epoch = (-1, np.empty(0))  # (number, its batches), the one used last

    def iterate(self, start_iteration: int = 0) -> "BatchIterator":
        """Return the batches from an iteration on, the same ones an uninterrupted run would meet there."""
        return BatchIterator(self._jobs(start_iteration), self.dataset, self.preprocess, self.loader, self.bad_images)

    def indices(self, iteration: int) -> np.ndarray:
        """Return the dataset indices [batch_size] of this rank's batch at an iteration."""
        batches, place = self._find(iteration)
        return batches[place] % len(self.dataset)

    def _find(self, iteration: int) -> tuple[np.ndarray, int]:
        """The batches of an iteration's epoch, of draws, and which of them is this rank's."""
        epoch, step = divmod(iteration, self.iterations_per_epoch)
        known, batches = self._epoch
        if known != epoch:
            batches = self._batches(epoch)
            self._epoch = (epoch, batches)
        return batches, step * self.world + self.rank

    def _batches(self, epoch: int) -> np.ndarray:
        """[iterations_per_epoch * world, batch_size] draws, see `CocoDataset.draw_epoch`."""
        size = self.loader.batch_size
        order = self.dataset.draw_epoch(np.random.default_rng((self.seed, epoch, 0)))
        order = np.resize(order, self.iterations_per_epoch * self.world * size)  # cuts off, or wraps around
        portrait = np.zeros(len(order), bool)
        if self.loader.group_by_aspect:
            height, width = self.dataset.sizes[order % len(self.dataset)].T
            portrait = height > width
        groups = [np.flatnonzero(portrait), np.flatnonzero(~portrait)]
        pure = [group[: len(group) // size * size] for group in groups]
        rest = [group[len(group) // size * size :] for group in groups]
        places = np.concatenate(pure + rest).reshape(-1, size)
        return order[places[np.argsort(places.max(axis=1))]]  # in the order in which they fill up

    def _jobs(self, start: int) -> Iterator["_Job"]:
        for iteration in itertools.count(start):
            sample = partial(self._sample, iteration // self.iterations_per_epoch)
            batches, place = self._find(iteration)
            spares = partial(self._following, batches, place) if self.loader.on_bad_image == "skip" else None
            yield _Job(batches[place].tolist(), sample, spares)

    def _following(self, batches: np.ndarray, place: int, slot: int) -> list[int]:
        """The draws after the one in a slot of a batch, around the end of the epoch's batches, of other images."""
        order = np.roll(batches.ravel(), -(place * batches.shape[1] + slot))
        images = order % len(self.dataset)
        return list(dict.fromkeys(order[images != images[0]].tolist()))

    def _sample(self, epoch: int, draw: int) -> Sample:
        rng = np.random.default_rng((self.seed, epoch, draw + 1))  # 0 is the order of the epoch
        index = draw % len(self.dataset)
        return train_sample(self.dataset, index, self.preprocess, self.augment, rng, self.keep_original)


class EvalBatches:
    """Every image of a dataset once, as it is evaluated.

    A batch has images of one padded size, and each is padded as if it were alone: what is found in an image does not
    depend on the batch size. So they come nearly in order, not quite. Of several ranks each takes every world-th batch.

    views: how the images are looked at, if not as the preprocessing says alone; a batch comes once for each.
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
        self._batches = _of_one_size(dataset.sizes, self._views, loader.batch_size)[rank::world]

    def __len__(self) -> int:
        """The number of batches; the last one of a size may be smaller."""
        return len(self._batches) * len(self._views)

    @property
    def image_count(self) -> int:
        """The number of images in the batches."""
        return sum(map(len, self._batches))

    def iterate(self) -> "BatchIterator":
        """Return the batches."""
        return self._iterate([partial(view.sample, self.dataset) for view in self._views])

    def labelled(self, keep_original: bool = False) -> "BatchIterator":
        """Return the batches as training has them, with objects, but not augmented."""
        still, rng = Augment(flip=0.0), np.random.default_rng(0)
        return self._iterate(
            [lambda index: train_sample(self.dataset, index, self.preprocess, still, rng, keep_original)]
        )

    def _iterate(self, samples: Sequence[Callable[[int], Sample]]) -> "BatchIterator":
        jobs = (_Job(indices, sample) for indices in self._batches for sample in samples)
        return BatchIterator(jobs, self.dataset, self.preprocess, self.loader)


def _of_one_size(sizes: np.ndarray, views: Sequence[View], batch_size: int) -> list[list[int]]:
    """Cut images of sizes [N, 2] (h, w) into batches of one padded size, in the order of their first images."""
    groups: dict[tuple, list[int]] = {}
    for index, size in enumerate(sizes.tolist()):
        padded = [view.preprocess.padded(view.preprocess.resized_size(*size)).tolist() for view in views]
        groups.setdefault(tuple(map(tuple, padded)), []).append(index)
    batches = [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
    return sorted(batches)


@dataclass
class _Job:
    """One batch to be loaded.

    draws: its images; modulo the dataset's length they are indices.
    spares: of a place in the batch, the draws that may take it; None where a bad image is an error.
    """

    draws: Sequence[int]
    sample: Callable[[int], Sample]
    spares: Callable[[int], Sequence[int]] | None = None
    met: list[int] = field(default_factory=list)  # the images looked at
    bad: dict[int, str] = field(default_factory=dict)  # those of them that were replaced, and why
    current: int | None = None  # the index being loaded, to name it when it gets stuck
    answer: queue.SimpleQueue = field(default_factory=queue.SimpleQueue)  # one Batch or Exception


class BatchIterator:
    """An iterator of batches that are loaded ahead, two per thread, and come in their order.

    An error in loading ends it and is raised where its batch was due: UserError as it is, anything else as
    RuntimeError with the image's path; RunFailed when a batch takes longer than the timeout. `close()` ends the
    threads; garbage collection and the end of the program do so too.
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
        self._ahead = 2 * loader.threads or 1  # without threads one loads all the same, so that it can be waited for
        self._pending: deque[_Job] = deque()
        self._todo: queue.SimpleQueue = queue.SimpleQueue()
        self._stop = threading.Event()
        # Daemons, so that a stuck one does not keep the program from ending. They must not refer to the iterator, or it
        # would never be collected.
        arguments = (self._todo, self._stop, dataset, preprocess)
        name = "ppdet_lite loader"
        count = max(loader.threads, 1)
        threads = [threading.Thread(target=_work, args=arguments, name=name, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        self._end = weakref.finalize(self, _shut_down, self._stop, self._todo, threads)

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
        """End the threads; one that is stuck is left behind."""
        self._end()
        self._pending.clear()

    def _next(self) -> Batch:
        for job in itertools.islice(self._jobs, self._ahead - len(self._pending)):
            self._pending.append(job)
            self._todo.put(job)
        if not self._pending:
            raise StopIteration
        job = self._pending.popleft()
        try:
            answer = job.answer.get(timeout=self._loader.timeout)
        except queue.Empty:
            path = self._dataset.info(job.draws[0] % len(self._dataset) if job.current is None else job.current).path
            limit = f"{self._loader.timeout:g} seconds (data.loader.timeout)"
            raise RunFailed(f"{path}: not loaded within {limit}; is its storage stuck?") from None
        if isinstance(answer, Exception):
            raise answer
        if self._bad_images is not None:  # here and not in the threads: told in order, whatever their number
            self._bad_images.note(job.met, job.bad)
        return answer


def _load(job: _Job, stop: threading.Event, dataset: CocoDataset, preprocess: Preprocess) -> Batch | None:
    """Return the batch of a job, None if stopped on the way."""
    samples = []
    for slot in range(len(job.draws)):
        if stop.is_set():
            return None
        samples.append(_good_sample(job, slot, dataset))
    return collate(samples, preprocess)


def _good_sample(job: _Job, slot: int, dataset: CocoDataset) -> Sample:
    """The sample of an image or, where that is bad and may be replaced, of its first good spare."""
    try:
        return _sample(job, job.draws[slot], dataset)
    except UserError as error:
        if job.spares is None:
            raise
        bad = {job.current: str(error)}
    for draw in job.spares(slot)[: JUDGED - 1]:
        try:
            sample = _sample(job, draw, dataset)
        except UserError as error:
            bad[job.current] = str(error)
        else:
            job.bad |= bad
            return sample
    raise UserError(mostly_bad(len(bad), len(bad), next(iter(bad.values()))))


def _sample(job: _Job, draw: int, dataset: CocoDataset) -> Sample:
    job.current = draw % len(dataset)
    job.met.append(job.current)
    try:
        return job.sample(draw)
    except UserError:
        raise
    except Exception as error:
        raise RuntimeError(f"{dataset.info(job.current).path}: {type(error).__name__}: {error}") from error


def _work(todo: queue.SimpleQueue, stop: threading.Event, dataset: CocoDataset, preprocess: Preprocess) -> None:
    # OpenCV's own threads, a setting of the whole process, only compete with these: two threads on two cores load 234
    # images/s without and 218 with them, and a single one gains nothing from them (130 either way).
    cv2.setNumThreads(0)
    while (job := todo.get()) is not None:
        try:
            job.answer.put(_load(job, stop, dataset, preprocess))
        except Exception as error:
            job.answer.put(error)


def _shut_down(stop: threading.Event, todo: queue.SimpleQueue, threads: Sequence[threading.Thread]) -> None:
    stop.set()
    for _ in threads:
        todo.put(None)
    deadline = time.monotonic() + 2  # each ends after the image it is at, unless that one is stuck
    for thread in threads:
        thread.join(max(deadline - time.monotonic(), 0))
