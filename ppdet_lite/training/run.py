"""A training run: its parts and its steps."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.pretrained import load_pretrained
from ppdet_lite.assembly.recipe import Data
from ppdet_lite.assembly.run_files import write_run_files
from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import InterruptedUpdate, NotFinite, RunFailed, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.core.stopping import StopRequest
from ppdet_lite.data.loading.largest_batch import largest_batch
from ppdet_lite.data.loading.loader import TrainBatches
from ppdet_lite.data.loading.transforms import Batch
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.evaluate import evaluate
from ppdet_lite.evaluation.setting_warnings import warn_about_evaluation
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import copy_running_statistics
from ppdet_lite.optimization.optimizer import Optimizer, freeze
from ppdet_lite.storage.checkpoint import prune
from ppdet_lite.training.diagnosis import StepInput
from ppdet_lite.training.ema import WeightAverage
from ppdet_lite.training.memory import peak_memory_mb
from ppdet_lite.training.nan_dump import dump_step
from ppdet_lite.training.plan import make_plan
from ppdet_lite.training.recorder import Recorder
from ppdet_lite.training.rehearsal import rehearse
from ppdet_lite.training.setting_warnings import (
    warn_about_batch,
    warn_about_frozen_offsets,
    warn_about_norms,
    warn_about_sizes,
)
from ppdet_lite.training.sinks import StepRecord
from ppdet_lite.training.state import RunState, restore_state, save_state
from ppdet_lite.training.step import batch_seed, train_step, updating


class Run:
    """A training run in progress: its parts, its progress (`state`), and the actions that `loop` calls.

    data: its `val` is None in a run without evaluations.
    start: the checkpoint to resume from; None for a new run.
    In a distributed run all ranks call the same methods, and only rank 0 writes files.
    """

    def __init__(self, config: Config, folder: Path, data: Data, model: FasterRCNN, start: Path | None) -> None:
        self.config, self.folder, self.data, self.model = config, folder, data, model
        self.rank, self.world = ranks.rank(), ranks.world()
        self.seed = config["runtime"]["seed"]
        self.accumulate = config["train"]["accumulate"]
        self.amp = config["train"]["amp"]
        batches = TrainBatches(
            data.train,
            data.preprocess,
            data.augment,
            data.loader,
            self.seed,
            rank=self.rank,
            world=self.world,
            keep_original=model.needs_originals,
        )
        self.plan = make_plan(config, max(batches.iterations_per_epoch // self.accumulate, 1))
        get_logger().info(
            f"{data.train.num_classes} classes, {len(data.train)} training images, "
            f"{self.plan.per_epoch} iterations per epoch, {self.plan.total} in all"
        )
        warn_about_batch(data.train.epoch_length, data.loader.batch_size, self.world, self.accumulate)
        is_random = start is None and config["pretrain_weights"] is None
        if config["pretrain_weights"] is None and config["pretrain_class_map"]:
            place = config.location_of("pretrain_class_map")
            raise UserError(f"{place}: has no effect without pretrain_weights; remove it")
        if start is None and not is_random:
            spec, class_map = config["pretrain_weights"], config["pretrain_class_map"]
            load_pretrained(model, spec, data.train.class_names, class_map, config)
        freeze(model, config["train"]["freeze"])
        warn_about_norms(model, data.loader.batch_size, is_random)
        if start is None:
            warn_about_frozen_offsets(model)
        warn_about_sizes(data.augment.short_sides, data.preprocess.short_side)
        if data.val is not None:
            warn_about_evaluation(build(config["eval"]), data.augment, data.preprocess, model.postprocess)
        settings, self.schedule = build(config["optimizer"]), build(config["schedule"])
        self.clip_norm, self.optimizer = settings.clip_norm, settings.build(model)
        self.full_rate = _full_rate(settings, data.loader.batch_size, self.world, self.accumulate)
        self.state, average = RunState(), None
        if start is not None:
            self.state, average = restore_state(start, model, self.optimizer, config, data.train)
        ema = config["train"]["ema"]
        self.average = None if ema is None else WeightAverage(model, build(ema), average)
        if config["train"]["rehearse"]:
            memory = ranks.on_all_ranks(self._rehearse)
            if self.world > 1:
                get_logger().info("peak memory by rank: %s GiB", ", ".join(f"{mb / 1024:.2f}" for mb in memory))
        self.recorder = None
        if self.rank == 0:
            write_run_files(folder, config, data.train.class_names, data.train.category_ids.tolist())
            total = self.plan.total + self.state.offset
            self.recorder = Recorder(folder, total, self.state.iteration, config["train"]["log_every"])
        self.bad_images = batches.bad_images
        self.batches = batches.iterate(self.position * self.accumulate)
        self.patches = None  # the input of the R-CNN teacher in the latest step

    def _rehearse(self) -> float:
        """Run a step on the largest batch, to check that it fits into memory. Returns the peak memory in MiB."""
        data, keep_original = self.data, self.model.needs_originals
        batch = largest_batch(data.train, data.preprocess, data.augment, data.loader.batch_size, keep_original)
        gradient_copies = (self.accumulate > 1) + (self.world > 1)  # the sum of former batches; the average over ranks
        rehearse(self.model, self.optimizer, batch, gradient_copies, self.amp)
        return peak_memory_mb()

    @property
    def position(self) -> int:
        """The progress of the run in steps of the current size (see `RunState.offset`)."""
        return self.state.iteration - self.state.offset

    @property
    def finished(self) -> bool:
        """Whether all iterations are done, or training stops early."""
        return self.position >= self.plan.total or self.is_stale

    @property
    def is_stale(self) -> bool:
        """Whether the last `train.early_stop` evaluations brought no improvement, so that training stops early."""
        return self.plan.early_stop is not None and self.state.stale >= self.plan.early_stop

    @property
    def evaluation_due(self) -> bool:
        """Whether an evaluation is due after the latest iteration."""
        return self.data.val is not None and self.plan.due(self.plan.evaluate_every, self.position)

    @property
    def evaluation_missed(self) -> bool:
        """Whether the run was stopped before an evaluation that was due."""
        return self.state.iteration > 0 and self.evaluation_due and self.state.evaluated < self.state.iteration

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint is due after the latest iteration."""
        return self.plan.due(self.plan.checkpoint_every, self.position) or self.is_stale

    def step(self, stop: StopRequest) -> None:
        """Train on the next batches and record the results. All ranks agree on whether to stop after this step.

        If the step fails before the weights are updated, on any rank, the model is unchanged.
        """
        start_time, iteration, position = time.perf_counter(), self.state.iteration, self.position
        with _statistics_restored_on_failure(self.model) as restore_statistics:
            batches, memory = self._next_batches(stop)
            data_seconds = time.perf_counter() - start_time
            first_batch = position * self.accumulate
            seeds = [batch_seed(self.seed, (first_batch + i) * self.world + self.rank) for i in range(self.accumulate)]
            rate = self.full_rate * self.schedule.factor(position, self.plan.total, self.plan.per_epoch)
            self.optimizer.set_lr(rate)
            self.model.train()
            scale = self.state.loss_scale.value if self.amp == "float16" else 1.0
            try:
                options = {"amp": self.amp, "loss_scale": scale}
                step = train_step(self.model, self.optimizer, batches, self.clip_norm, iteration, seeds, **options)
            except NotFinite as error:
                inputs = StepInput(batches, iteration, seeds)
                failure = dump_step(self.folder, inputs, error, self.model, self.config, self.data.train)
                ranks.on_all_ranks(lambda: None)  # wait: a rank that exits would end others that still write their dump
                raise failure from error
        self.patches = step.patches
        self.state = self.state._replace(iteration=iteration + 1)
        if self.amp == "float16":
            self.state = self.state._replace(loss_scale=self.state.loss_scale.after(step.overflowed))
        if step.overflowed:
            restore_statistics()  # those of activations that exceed float16 would never be finite again
            change = f"loss scale {scale:g} -> {self.state.loss_scale.value:g}"
            get_logger().warning("iteration %d skipped: a gradient exceeds float16; %s", iteration + 1, change)
            return
        if self.average:
            with updating("the average of weights"):
                self.average.update(self.state.iteration)
        if self.recorder:
            epoch, seconds = position // self.plan.per_epoch, time.perf_counter() - start_time
            memory = (peak_memory_mb(), *memory[1:])  # the other ranks reported theirs before this step
            numbers = (step.losses, step.metrics, seconds, data_seconds, memory)
            self.recorder.step(StepRecord(self.state.iteration, epoch, rate, *numbers))

    def _next_batches(self, stop: StopRequest) -> tuple[list[Batch], Sequence[float]]:
        """Load the batches of a step. Returns them and the peak memory of each rank in MiB."""
        batches: list[Batch] = []

        def load() -> tuple[signal.Signals | None, float]:
            batches.extend(next(self.batches) for _ in range(self.accumulate))
            return stop.received, peak_memory_mb()

        received, memory = zip(*ranks.on_all_ranks(load))
        stop.agree(received)
        return batches, memory

    def evaluate(self, stop: StopRequest) -> None:
        """Evaluate the model, or the average of its weights, on the validation images; save it if it is the best.

        A stop request interrupts the evaluation. A run that is resumed after an interruption or a failure repeats it.
        """
        self.bad_images.log_summary()
        # no interruption while weights are exchanged, which would leave some averaged and others not
        with self.average.applied() if self.average else contextlib.nullcontext(), stop.interruptible():
            results = self._evaluate(stop.raise_if_received if self.world > 1 else None)
        with stop.interruptible():
            self._count_evaluation(results)

    def _evaluate(self, check: Callable[[], None] | None) -> dict[str, Any]:
        """Evaluate the weights that the model has now, and record the preview images. Returns the results.

        check: called after every image, see `evaluation.evaluate`.
        """
        data, settings = self.data, build(self.config["eval"])
        classes = data.val.class_names, data.val.category_ids.tolist()
        trained = TrainedModel(self.model, *classes, data.preprocess, str(self.folder))
        detector = Detector.from_trained(trained, self.config["runtime"]["precision"])
        results = evaluate(detector, data.val, data.loader, self.folder, settings, check)
        if self.recorder:
            count = self.config["train"]["preview_images"]
            self.recorder.preview(self.state.iteration, self.model, data.val, data.preprocess, count)
        return results

    def _count_evaluation(self, results: Mapping[str, Any]) -> None:
        """Save the model if its results are the best, and record them. The state changes last, see `evaluate`."""
        metric = self.config["train"]["best_metric"]
        state = self.state.after_evaluation(metric, results[metric])
        if state.stale == 0:
            ranks.on_rank0(lambda: self._save("best", state))
        if self.recorder:
            self.recorder.evaluation(state.iteration, results)
        self.state = state
        if self.is_stale:
            get_logger().info("no better %s for %d evaluations: training ends early", metric, state.stale)

    def record_details(self) -> None:
        """Redraw the curves, and record the offsets of deformable parts and the patches of the R-CNN teacher."""
        if self.recorder:
            data, iteration = self.data, self.state.iteration
            self.recorder.draw_curves()
            self.recorder.offsets(iteration, self.model, data.val or data.train, data.preprocess)
            self.recorder.patches(iteration, self.patches, data.train.class_names, data.preprocess)

    def save(self) -> None:
        """Write a checkpoint to resume from, and remove the oldest beyond `train.keep_last`."""
        ranks.on_rank0(self._save_and_prune)

    @contextlib.contextmanager
    def saved_on_failure(self) -> Iterator[None]:
        """Write a checkpoint of the finished iterations when a step or an evaluation inside fails.

        Not after NotFinite, whose cause may be in the weights, nor after InterruptedUpdate.
        """
        try:
            yield
        except (NotFinite, InterruptedUpdate):
            raise
        except Exception:
            self._save_after_failure()
            raise

    def _save_after_failure(self) -> None:
        """Write a checkpoint, unless one of this iteration exists. Log a warning if that fails too."""

        def save() -> None:
            name = f"iter_{self.state.iteration:08d}"
            if self.state.iteration > 0 and not (self.folder / "checkpoints" / name).exists():
                self._save_and_prune()
                get_logger().warning("the run fails; its finished iterations are saved as %s", name)

        try:
            ranks.on_rank0(save)
        except RunFailed:  # another rank has ended, which the failure itself may report
            pass
        except Exception as error:  # for example, out of memory
            get_logger().warning("the finished iterations cannot be saved: %s", error)

    def close(self) -> None:
        """Stop the loading threads and close all files."""
        self.batches.close()
        self.bad_images.log_summary()
        if self.recorder:
            self.recorder.close()

    def _save_and_prune(self) -> None:
        self._save(f"iter_{self.state.iteration:08d}", self.state)
        prune(self.folder / "checkpoints", self.config["train"]["keep_last"])

    def _save(self, name: str, state: RunState) -> None:
        target = self.folder / "checkpoints" / name
        average = self.average.arrays() if self.average else None
        save_state(target, self.model, self.optimizer, self.config, self.data.train, state, average)


@contextlib.contextmanager
def _statistics_restored_on_failure(model: FasterRCNN) -> Iterator[Callable[[], None]]:
    """Restore the running statistics of batch norms, which a forward pass changes, if the block raises an error.

    Yields a function that restores them.
    """
    restore = copy_running_statistics(model)
    try:
        yield restore
    except Exception:
        restore()
        raise


def _full_rate(settings: Optimizer, batch_size: int, devices: int, batches: int) -> float:
    """Return the learning rate after the warm-up, and log how it is computed."""
    rate = settings.scaled_lr(batch_size * devices * batches)
    images = f"{batch_size} images x {devices} devices" + (f" x {batches} batches" if batches > 1 else "")
    arithmetic = f"base_lr {settings.base_lr:g} x ({images}) / base_batch {settings.base_batch}"
    get_logger().info("learning rate %g = %s", rate, arithmetic)
    return rate
