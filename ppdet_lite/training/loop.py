"""Training: the loop first, then the run whose steps it takes."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import paddle

from ppdet_lite import __version__
from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.pretrained import load_pretrained
from ppdet_lite.assembly.recipe import Data
from ppdet_lite.assembly.run_files import describe_run
from ppdet_lite.assembly.setup import (
    TrainedModel,
    build_dataset,
    build_model,
    check_training_data,
    log_notes,
    use_device,
)
from ppdet_lite.config.checked import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core import log, runtime
from ppdet_lite.core.errors import NotFinite, RunFailed, Stopped, TornStep, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.core.stopping import StopRequest
from ppdet_lite.data.largest import largest_batch
from ppdet_lite.data.loader import TrainBatches
from ppdet_lite.data.statistics import format_statistics
from ppdet_lite.data.transforms import Batch
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.coco_metric import require_backend
from ppdet_lite.evaluation.evaluate import evaluate
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.half import require_half
from ppdet_lite.modeling.norm import running_statistics
from ppdet_lite.ops import onednn
from ppdet_lite.optimization.optimizer import Optimizer, freeze
from ppdet_lite.storage.checkpoint import prune
from ppdet_lite.training.advice import warn_about_batch, warn_about_norms, warn_about_sizes
from ppdet_lite.training.diagnosis import StepInput
from ppdet_lite.training.ema import WeightAverage
from ppdet_lite.training.memory import exhaustion_told
from ppdet_lite.training.nan_dump import dump_step
from ppdet_lite.training.plan import make_plan
from ppdet_lite.training.recorder import Recorder
from ppdet_lite.training.rehearsal import rehearse
from ppdet_lite.training.state import Progression, restore_state, save_state, starting_point, take_folder
from ppdet_lite.training.step import batch_seed, train_step


def train(config: Config, folder: Path, resume: str | None = None, evaluate_at_end: bool = False) -> None:
    """Train as a config says, writing into the run's folder.

    resume: None for a new run, "auto" to go on from the latest checkpoint in the folder (if there is one), or a
        checkpoint's folder. Batches and sampling depend on the seed and the iteration alone, so the result is that of
        an uninterrupted run, bit for bit on a CPU.
    evaluate_at_end: evaluate the final model even where `train.evaluate_every` is null.

    A first SIGINT or SIGTERM ends the step, writes a checkpoint and raises Stopped, before the first step at once; a
    second one ends the process. Of several ranks, all stop at the same step when one of them is told to.

    Raises UserError for what the user can mend, RunFailed when a loss is not finite (see `nan_dump`) or another rank
    has ended.
    """
    with contextlib.ExitStack() as held:
        stop = held.enter_context(StopRequest(alone=ranks.world() == 1))
        try:
            with exhaustion_told("training"):
                with _told_before_the_first_step(), stop.breaking_off():
                    run = _prepare(config, folder, resume, evaluate_at_end, held)
                _go_on(held.enter_context(contextlib.closing(run)), stop)
        except Exception as error:
            log.note_in_file(error)
            raise
    get_logger().info("done: %s", folder)


@contextlib.contextmanager
def _told_before_the_first_step() -> Iterator[None]:
    try:
        yield
    except Stopped as stopped:
        get_logger().warning("%s before the first step", stopped)
        raise


def _go_on(run: "Run", stop: StopRequest) -> None:
    """The loop. Asked to stop, it ends after the step it is at, with a checkpoint that has all steps."""
    try:
        if run.evaluation_missed:
            run.evaluate(stop.check)
        while not run.finished:
            with run.rescued():
                run.step(stop)
                with stop.breaking_off():
                    if run.evaluation_due:
                        run.evaluate(stop.check)
                    if run.evaluation_due or run.checkpoint_due:
                        run.show()
            if run.checkpoint_due:
                run.save()
    except Stopped as stopped:
        run.save()
        get_logger().warning("%s after iteration %d; go on with --resume auto", stopped, run.done.iteration)
        raise


def _prepare(
    config: Config, folder: Path, resume: str | None, evaluate_at_end: bool, held: contextlib.ExitStack
) -> "Run":
    """Whatever can be refused is refused before the folder is touched: its log comes after that.

    held: where the hold on the folder goes.
    """
    log.configure(ranks.rank())
    if config["weights"] is not None:
        place = config.origin("weights")
        raise UserError(f"{place}: weights: is for evaluation and export; training starts from pretrain_weights")
    device = use_device(config)
    require_half(config["train"]["amp"], config.origin("train.amp"))
    ranks.start()
    start = ranks.first(lambda: starting_point(folder, resume))
    evaluates = evaluate_at_end or config["train"]["evaluate_every"] is not None
    if evaluates:
        require_backend(config["eval"]["backend"], config["eval"].place_of("backend"))
    train_set = build_dataset(config, "train")
    val_set = build_dataset(config, "val", train_set.class_names)
    check_training_data(config, train_set, val_set)
    model = build_model(config, train_set.class_names)
    moved = ranks.first(lambda: take_folder(folder, held, start, resume))
    log.configure(ranks.rank(), folder / "train.log")
    if moved is not None:
        get_logger().warning("%s", moved)
    if resume == "auto" and start is None:
        get_logger().info("nothing to resume in %s: a new run", folder)
    get_logger().info("ppdet_lite %s, paddle %s, device %s", __version__, paddle.__version__, device)
    for setting in (*runtime.applied(), onednn.description()):
        get_logger().info("%s", setting)
    for dataset in (train_set, val_set):
        log_notes(dataset)
    columns = {"train": train_set.statistics(), "val": val_set.statistics()}
    get_logger().info("data:\n%s", format_statistics(columns, train_set.class_names))
    data = build(config["data"], train=train_set, val=val_set if evaluates else None)
    return Run(config, folder, data, model, start)


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
        self._initialise(start)
        freeze(model, config["train"]["freeze"])
        settings, self.schedule = build(config["optimizer"]), build(config["schedule"])
        self.clip_norm, self.optimizer = settings.clip_norm, settings.build(model)
        self.full_rate = _full_rate(settings, data.loader.batch_size, self.world, self.accumulate)
        self.done, average = Progression(), None
        if start is not None:
            self.done, average = restore_state(start, model, self.optimizer, config, data.train)
        ema = config["train"]["ema"]
        self.average = None if ema is None else WeightAverage(model, build(ema), average)
        if config["train"]["rehearse"]:
            ranks.together(self._rehearse)
        self.recorder = None
        if self.rank == 0:
            describe_run(folder, config, data.train.class_names, data.train.category_ids.tolist())
            self.recorder = Recorder(folder, self.plan.total, self.done.iteration, config["train"]["log_every"])
        self.bad_images = batches.bad_images
        self.batches = batches.iterate(self.done.iteration * self.accumulate)
        self.patches = None  # what an R-CNN teacher saw in the latest step

    def _initialise(self, start: Path | None) -> None:
        """The weights that a new run starts from; warnings of what they or the sizes cannot go with."""
        weights = self.config["pretrain_weights"]
        if start is None and weights is not None:
            load_pretrained(self.model, weights, self.data.train.class_names, self.config["pretrain_class_map"])
        warn_about_norms(self.model, self.data.loader.batch_size, from_random=start is None and weights is None)
        warn_about_sizes(self.data.augment.short_sides, self.data.preprocess.short_side)

    def _rehearse(self) -> None:
        """See whether the largest batch fits into memory; each rank for itself."""
        data, keep_original = self.data, self.model.needs_originals
        batch = largest_batch(data.train, data.preprocess, data.augment, data.loader.batch_size, keep_original)
        rehearse(self.model, self.optimizer, batch, self.accumulate > 1, self.amp)

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

        def load() -> signal.Signals | None:
            batches.extend(next(self.batches) for _ in range(self.accumulate))
            return stop.heard

        stop.agree(ranks.together(load))
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
            self.average.update(self.model, self.done.iteration)
        if self.recorder:
            seconds = time.perf_counter() - began
            epoch = iteration // self.plan.per_epoch
            self.recorder.step(self.done.iteration, epoch, rate, step, seconds, data_seconds)

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
