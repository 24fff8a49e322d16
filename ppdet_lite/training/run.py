"""A training run: what it is made of, and the steps that the loop takes."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paddle

from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.pretrained import load_pretrained
from ppdet_lite.assembly.recipe import Data
from ppdet_lite.assembly.run_files import describe_run
from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import NotFinite, RunFailed, TornStep
from ppdet_lite.core.log import get_logger
from ppdet_lite.core.stopping import StopRequest
from ppdet_lite.data.loading.largest_batch import largest_batch
from ppdet_lite.data.loading.loader import TrainBatches
from ppdet_lite.data.loading.transforms import Batch
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.evaluate import evaluate
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import running_statistics
from ppdet_lite.optimization.optimizer import Optimizer, freeze
from ppdet_lite.storage.checkpoint import prune
from ppdet_lite.training.diagnosis import StepInput
from ppdet_lite.training.ema import WeightAverage
from ppdet_lite.training.memory import peak_memory_mb
from ppdet_lite.training.nan_dump import dump_step
from ppdet_lite.training.plan import make_plan
from ppdet_lite.training.recorder import Recorder
from ppdet_lite.training.rehearsal import rehearse
from ppdet_lite.training.setting_warnings import warn_about_batch, warn_about_norms, warn_about_sizes
from ppdet_lite.training.state import Progression, restore_state, save_state
from ppdet_lite.training.step import batch_seed, train_step, updating


class Run:
    """A run in progress: how far it is (`done`), and the steps that `train` takes.

    data: its `val` is None in a run that evaluates nothing. start: the checkpoint to go on from. Of several ranks, who
    all call the same methods, the first one alone writes.
    """

    def __init__(self, config: Config, folder: Path, data: Data, model: FasterRCNN, start: Path | None) -> None:
        self.config, self.folder, self.data, self.model = config, folder, data, model
        self.rank, self.world = ranks.rank(), ranks.world()
        self.seed = config["runtime"]["seed"]
        batches = TrainBatches(
            *(data.train, data.preprocess, data.augment, data.loader, self.seed, self.rank, self.world),
            keep_original=model.needs_originals,
        )
        self.accumulate = config["train"]["accumulate"]
        self.amp = config["train"]["amp"]
        self.plan = make_plan(config, max(batches.iterations_per_epoch // self.accumulate, 1))
        get_logger().info(
            "%d classes, %d training images, %d iterations per epoch, %d in all",
            *(data.train.num_classes, len(data.train), self.plan.per_epoch, self.plan.total),
        )
        warn_about_batch(data.train.epoch_length, data.loader.batch_size, self.world, self.accumulate)
        from_random = self._initialise(start)
        freeze(model, config["train"]["freeze"])
        warn_about_norms(model, data.loader.batch_size, from_random)
        warn_about_sizes(data.augment.short_sides, data.preprocess.short_side)
        settings, self.schedule = build(config["optimizer"]), build(config["schedule"])
        self.clip_norm, self.optimizer = settings.clip_norm, settings.build(model)
        self.full_rate = _full_rate(settings, data.loader.batch_size, self.world, self.accumulate)
        self.done, average = Progression(), None
        if start is not None:
            self.done, average = restore_state(start, model, self.optimizer, config, data.train)
        ema = config["train"]["ema"]
        self.average = None if ema is None else WeightAverage(model, build(ema), average)
        if config["train"]["rehearse"]:
            memory = ranks.together(self._rehearse)
            if self.world > 1:
                get_logger().info("peak memory by rank: %s GiB", ", ".join(f"{mb / 1024:.2f}" for mb in memory))
        self.recorder = None
        if self.rank == 0:
            describe_run(folder, config, data.train.class_names, data.train.category_ids.tolist())
            self.recorder = Recorder(folder, self.plan.total, self.done.iteration, config["train"]["log_every"])
        self.bad_images = batches.bad_images
        self.batches = batches.iterate(self.done.iteration * self.accumulate)
        self.patches = None  # what an R-CNN teacher saw in the latest step

    def _initialise(self, start: Path | None) -> bool:
        """Load the weights that a new run starts from; whether it starts from random ones."""
        weights = self.config["pretrain_weights"]
        if start is None and weights is not None:
            load_pretrained(self.model, weights, self.data.train.class_names, self.config["pretrain_class_map"])
        return start is None and weights is None

    def _rehearse(self) -> float:
        """See whether the largest batch fits into memory, each rank for itself; the most that was in use, in MiB."""
        data, keep_original = self.data, self.model.needs_originals
        batch = largest_batch(data.train, data.preprocess, data.augment, data.loader.batch_size, keep_original)
        rehearse(self.model, self.optimizer, batch, self.accumulate > 1, self.amp)
        return peak_memory_mb()

    @property
    def finished(self) -> bool:
        """Whether all iterations are done, or evaluations have long stopped getting better."""
        return self.done.iteration >= self.plan.total or self.is_stale

    @property
    def is_stale(self) -> bool:
        """Whether training ends early."""
        return self.plan.early_stop is not None and self.done.stale >= self.plan.early_stop

    @property
    def evaluation_due(self) -> bool:
        """Whether the validation images are looked at after the iteration that is done."""
        return self.data.val is not None and self.plan.due(self.plan.evaluate_every, self.done.iteration)

    @property
    def evaluation_missed(self) -> bool:
        """Whether the run was stopped when an evaluation was due."""
        return self.done.iteration > 0 and self.evaluation_due and self.done.evaluated < self.done.iteration

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is written after the iteration that is done."""
        return self.plan.due(self.plan.checkpoint_every, self.done.iteration) or self.is_stale

    def step(self, stop: StopRequest) -> None:
        """Train on the next batch, and tell of it; hear on the way whether the run is to stop.

        Should it fail before the weights are updated, on this rank or another, all is as it was before.
        """
        iteration = self.done.iteration
        statistics = [(value, value.clone()) for value in running_statistics(self.model)]
        try:
            self._step(stop)
        except Exception:
            if self.done.iteration == iteration:
                for value, before in statistics:
                    paddle.assign(before, value)
            raise

    def _step(self, stop: StopRequest) -> None:
        iteration, began = self.done.iteration, time.perf_counter()
        batches: list[Batch] = []

        def load() -> tuple[signal.Signals | None, float]:
            batches.extend(next(self.batches) for _ in range(self.accumulate))
            return stop.heard, peak_memory_mb()

        heard, memory = zip(*ranks.together(load))
        stop.agree(heard)
        data_seconds = time.perf_counter() - began
        first = iteration * self.accumulate
        numbers = [(first + i) * self.world + self.rank for i in range(self.accumulate)]
        seeds = [batch_seed(self.seed, number) for number in numbers]
        rate = self.full_rate * self.schedule.factor(iteration, self.plan.total, self.plan.per_epoch)
        self.optimizer.set_lr(rate)
        self.model.train()
        scale = self.done.loss_scale.value if self.amp == "float16" else 1.0
        try:
            step = train_step(
                *(self.model, self.optimizer, batches, self.clip_norm, iteration, seeds),
                amp=self.amp,
                loss_scale=scale,
            )
        except NotFinite as error:
            taken = StepInput(batches, iteration, seeds)
            failure = dump_step(self.folder, taken, error, self.model, self.config, self.data.train)
            ranks.together(lambda: None)  # who leaves first would end those who still write theirs
            raise failure from error
        self.patches = step.patches
        self.done = self.done._replace(iteration=iteration + 1)
        if self.amp == "float16":
            self.done = self.done._replace(loss_scale=self.done.loss_scale.after(step.overflowed))
        if step.overflowed:
            told = (iteration + 1, scale, self.done.loss_scale.value)
            get_logger().warning("iteration %d left out: a gradient beyond float16; loss scale %g -> %g", *told)
            return
        if self.average:
            with updating("the average of weights"):
                self.average.update(self.model, self.done.iteration)
        if self.recorder:
            seconds = time.perf_counter() - began
            epoch = iteration // self.plan.per_epoch
            memory = (peak_memory_mb(), *memory[1:])  # of the others before this step
            self.recorder.step(self.done.iteration, epoch, rate, step, seconds, data_seconds, memory)

    def evaluate(self, check: Callable[[], None]) -> None:
        """Score the model, its average if it has one, on the validation images; the best one so far is kept.

        check: see `evaluation.evaluate`.
        """
        self.bad_images.tell()
        with self.average.applied(self.model) if self.average else contextlib.nullcontext():
            self._evaluate(check if self.world > 1 else None)

    def _evaluate(self, check: Callable[[], None] | None) -> None:
        data, how = self.data, build(self.config["eval"])
        classes = data.val.class_names, data.val.category_ids.tolist()
        detector = Detector.of(TrainedModel(self.model, *classes, data.preprocess, str(self.folder)))
        results = evaluate(detector, data.val, data.loader, self.folder, how, check)
        metric = self.config["train"]["best_metric"]
        before = (self.done.best or {}).get(metric)
        sign = -1 if metric == "loss" else 1
        is_best = before is None or sign * results[metric] > sign * before
        self.done = self.done._replace(evaluated=self.done.iteration, stale=0 if is_best else self.done.stale + 1)
        if is_best:
            self.done = self.done._replace(best={metric: results[metric], "iteration": self.done.iteration})
        elif self.is_stale:
            get_logger().info("no better %s for %d evaluations: training ends early", metric, self.done.stale)
        if self.recorder:
            count = self.config["train"]["preview_images"]
            self.recorder.evaluation(self.done.iteration, results)
            self.recorder.preview(self.done.iteration, self.model, data.val, data.preprocess, count)
        if is_best:
            ranks.first(lambda: self._save("best"))

    def show(self) -> None:
        """Draw the curves; tell where deformable parts look, and show what an R-CNN teacher saw."""
        if self.recorder:
            self.recorder.curves()
            shown = self.data.train if self.data.val is None else self.data.val
            self.recorder.offsets(self.done.iteration, self.model, shown, self.data.preprocess)
            classes = self.data.train.class_names
            self.recorder.patches(self.done.iteration, self.patches, classes, self.data.preprocess)

    def save(self) -> None:
        """Write a checkpoint to go on from, and remove the oldest beyond `train.keep_last`."""
        ranks.first(self._save_and_prune)

    @contextlib.contextmanager
    def rescued(self) -> Iterator[None]:
        """Should a step or an evaluation fail inside, write a checkpoint of what was done before it ends the run.

        Not so when a number is not finite, as what was done may be the reason, or when weights are half updated.
        """
        try:
            yield
        except (NotFinite, TornStep):
            raise
        except Exception:
            self._rescue()
            raise

    def _rescue(self) -> None:
        """Write a checkpoint, unless there is one of this iteration."""

        def save() -> None:
            name = f"iter_{self.done.iteration:08d}"
            if self.done.iteration > 0 and not (self.folder / "checkpoints" / name).exists():
                self._save_and_prune()
                get_logger().warning("the run fails; what was done is saved as %s", name)

        try:
            ranks.first(save)
        except RunFailed:  # another rank has ended, as the failure itself may say
            pass
        except Exception as error:  # memory may be out
            get_logger().warning("what was done cannot be saved: %s", error)

    def close(self) -> None:
        """End the loading threads and everything that is written."""
        self.batches.close()
        self.bad_images.tell()
        if self.recorder:
            self.recorder.close()

    def _save_and_prune(self) -> None:
        self._save(f"iter_{self.done.iteration:08d}")
        prune(self.folder / "checkpoints", self.config["train"]["keep_last"])

    def _save(self, name: str) -> None:
        target = self.folder / "checkpoints" / name
        average = self.average.arrays() if self.average else None
        save_state(target, self.model, self.optimizer, self.config, self.data.train, self.done, average)


def _full_rate(settings: Optimizer, batch_size: int, devices: int, batches: int) -> float:
    """The learning rate at its height; the log shows where it comes from."""
    rate = settings.scaled_lr(batch_size * devices * batches)
    get_logger().info(
        "learning rate %g = base_lr %g x (%d images x %d devices%s) / base_batch %d",
        *(rate, settings.base_lr, batch_size, devices, f" x {batches} batches" if batches > 1 else ""),
        settings.base_batch,
    )
    return rate
