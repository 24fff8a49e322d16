"""Training: set up, then the loop."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite import __version__
from ppdet_lite.assembly.setup import build_dataset, build_model, load_pretrained, log_notes, use_device
from ppdet_lite.config.load import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core import runtime
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.core.log import get_logger, setup
from ppdet_lite.data.coco import CocoDataset
from ppdet_lite.data.loader import TrainBatches
from ppdet_lite.evaluation.evaluate import evaluate
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import FrozenBatchNorm
from ppdet_lite.optimization.duration import to_iterations
from ppdet_lite.optimization.optimizer import clip_gradients
from ppdet_lite.storage.checkpoint import prune
from ppdet_lite.storage.files import atomic_writer
from ppdet_lite.structures import Originals, Targets
from ppdet_lite.training.recorder import Recorder, Step
from ppdet_lite.training.state import Progression, restore_state, save_state, starting_point


class Plan(NamedTuple):
    """The lengths of a run, in iterations; None means never, but for the end."""

    total: int
    per_epoch: int
    checkpoint_every: int | None
    evaluate_every: int | None

    def due(self, every: int | None, iteration: int) -> bool:
        """Whether something that happens `every` so many iterations, and at the end, is due after an iteration."""
        return iteration == self.total or (every is not None and iteration % every == 0)


def train(config: Config, folder: Path, resume: str | None = None, evaluate_at_end: bool = False) -> None:
    """Train as a config says, writing into the run's folder.

    resume: None for a new run, "auto" to go on from the latest checkpoint in the folder (if there is one), or a
        checkpoint's folder. Batches and sampling depend on the seed and the iteration alone, so the result is that of
        an uninterrupted run, bit for bit on a CPU.
    evaluate_at_end: evaluate the final model even where `train.evaluate_every` is null.

    Raises UserError for what the user can mend, RunFailed when a loss is not finite.
    """
    rank, world = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    setup(rank)  # the log file comes when nothing of the user's is left to refuse: then there may be a folder
    start = starting_point(folder, resume)
    device = use_device(config)
    train_set = build_dataset(config, "train")
    evaluates = evaluate_at_end or config["train"]["evaluate_every"] is not None
    val_set = build_dataset(config, "val", train_set.class_names) if evaluates else None
    model = build_model(config, train_set.class_names)
    setup(rank, folder / "train.log")
    get_logger().info("ppdet_lite %s, paddle %s, device %s", __version__, paddle.__version__, device)
    for setting in runtime.applied():
        get_logger().info("%s", setting)
    for dataset in (train_set, val_set):
        if dataset is not None:
            log_notes(dataset)
    if world > 1:
        paddle.distributed.init_parallel_env()

    data, seed = build(config["data"], train=train_set, val=val_set), config["runtime"]["seed"]
    batches = TrainBatches(
        train_set, data.preprocess, data.augment, data.loader, seed, rank, world, model.needs_originals
    )
    plan = _plan(config, batches.iterations_per_epoch)
    get_logger().info(
        "%d classes, %d training images, %d iterations per epoch, %d in all",
        *(train_set.num_classes, len(train_set), plan.per_epoch, plan.total),
    )
    from_random = start is None and config["pretrain_weights"] is None
    if start is None and config["pretrain_weights"] is not None:
        load_pretrained(model, config["pretrain_weights"])
    warn_about_norms(model, data.loader.batch_size, from_random)
    _warn_about_sizes(data.augment.short_sides, data.preprocess.short_side)
    settings, schedule = build(config["optimizer"]), build(config["schedule"])
    optimizer = settings.build(model)
    lr = settings.scaled_lr(data.loader.batch_size * world)
    get_logger().info(
        "learning rate %g = base_lr %g x (%d images x %d devices) / base_batch %d",
        *(lr, settings.base_lr, data.loader.batch_size, world, settings.base_batch),
    )
    done = Progression() if start is None else restore_state(start, model, optimizer, config, train_set)
    recorder = None
    if rank == 0:
        _describe(config, folder, train_set)
        recorder = Recorder(folder, plan.total, done.iteration, config["train"]["log_every"])
    network = paddle.DataParallel(model) if world > 1 else model
    stream = batches.iterate(done.iteration)
    try:
        for iteration in range(done.iteration, plan.total):
            began = time.perf_counter()
            batch = next(stream)
            data_seconds = time.perf_counter() - began
            paddle.seed(_iteration_seed(seed, iteration, rank))
            optimizer.set_lr(lr * schedule.factor(iteration, plan.total, plan.per_epoch))
            model.train()
            step = train_step(network, optimizer, batch, settings.clip_norm, iteration)
            done = done._replace(iteration=iteration + 1)
            if recorder:
                times = (time.perf_counter() - began, data_seconds)
                recorder.step(done.iteration, iteration // plan.per_epoch, optimizer.get_lr(), step, *times)
            if val_set is not None and plan.due(plan.evaluate_every, done.iteration):
                results = evaluate(model, val_set, data.preprocess, data.loader, folder)
                is_best = done.best is None or results["AP"] > done.best["AP"]
                if is_best:
                    done = done._replace(best={"AP": results["AP"], "iteration": done.iteration})
                if recorder:
                    recorder.evaluation(done.iteration, results)
                    recorder.preview(done.iteration, model, val_set, data.preprocess, config["train"]["preview_images"])
                    if is_best:
                        save_state(folder / "checkpoints/best", model, None, config, train_set, done)
            checkpoint_due = plan.due(plan.checkpoint_every, done.iteration)
            if recorder and (checkpoint_due or plan.due(plan.evaluate_every, done.iteration)):
                shown = train_set if val_set is None else val_set
                recorder.offsets(done.iteration, model, shown, data.preprocess)
                recorder.patches(done.iteration, step.patches, train_set.class_names, data.preprocess)
            if recorder and checkpoint_due:
                target = folder / "checkpoints" / f"iter_{done.iteration:08d}"
                save_state(target, model, optimizer, config, train_set, done)
                prune(target.parent, config["train"]["keep_last"])
    finally:
        stream.close()
        if recorder:
            recorder.close()
    get_logger().info("done: %s", folder)


def train_step(
    network: nn.Layer,
    optimizer: paddle.optimizer.Optimizer,
    batch: Mapping[str, Any],
    clip_norm: float | None = None,
    iteration: int | None = None,
) -> Step:
    """One step on a batch of the loader, after `iteration` others (see `FasterRCNN.forward`).

    Raises RunFailed, before any weight is updated, when a loss or a gradient is not finite. The losses alone would not
    tell: on a CPU Paddle's ReLU makes 0 of NaN, and a network whose weights are lost goes on with finite losses.
    """
    output = network(*to_tensors(batch), iteration=iteration)
    losses = _numbers(output.losses)
    _require_finite("a loss", losses, losses, batch)
    sum(output.losses.values()).backward()
    gradient_norm = clip_gradients(network, clip_norm)
    _require_finite("a gradient", {"norm": gradient_norm}, losses, batch)
    optimizer.step()
    optimizer.clear_grad()
    return Step(losses, {**_numbers(output.metrics), "gradient_norm": gradient_norm}, output.patches)


def _require_finite(
    what: str, values: Mapping[str, float], losses: Mapping[str, float], batch: Mapping[str, Any]
) -> None:
    if not np.isfinite(list(values.values())).all():
        shown = ", ".join(f"{name} {value:g}" for name, value in losses.items())
        raise RunFailed(
            f"{what} is not finite: {shown}; image ids {batch['image_ids'].tolist()}; "
            "lower optimizer.base_lr, lengthen the warm-up, or set optimizer.clip_norm"
        )


def to_tensors(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, list[Targets], Originals | None]:
    """The arguments of a detector's training forward from a batch of the loader."""
    originals = None
    if "original_images" in batch:
        images = [paddle.to_tensor(image) for image in batch["original_images"]]
        originals = Originals(images, paddle.to_tensor(batch["flipped"]))
    targets = [
        Targets(
            paddle.to_tensor(target["boxes"], dtype="float32").reshape([-1, 4]),
            paddle.to_tensor(target["classes"], dtype="int64"),
            paddle.to_tensor(target["is_crowd"], dtype="bool"),
        )
        for target in batch["targets"]
    ]
    return (*(paddle.to_tensor(batch[key]) for key in ("images", "image_sizes", "scales")), targets, originals)


def warn_about_norms(model: FasterRCNN, images_per_device: int, from_random: bool) -> None:
    """Log which norms a model has, and a warning for each that cannot work as it is used."""
    counts: dict[str, int] = {}
    for layer in model.sublayers():
        if isinstance(layer, (nn.BatchNorm2D, nn.SyncBatchNorm, nn.GroupNorm, FrozenBatchNorm)):
            counts[type(layer).__name__] = counts.get(type(layer).__name__, 0) + 1
    get_logger().info("norms: %s", ", ".join(f"{count} {name}" for name, count in counts.items()) or "none")
    own = None if model.mimic is None else model.mimic.backbone
    for name, backbone in {"model.backbone": model.backbone, "model.mimic.backbone": own}.items():
        if from_random and backbone is not None and backbone.frozen_stages:
            get_logger().warning(
                "frozen stages of a backbone from random initialisation never learn: set %s.frozen_stages=0, "
                "or pretrain_weights",
                name,
            )
    if from_random and counts.get("FrozenBatchNorm"):
        get_logger().warning(
            "frozen_bn from random initialisation normalises nothing: set pretrain_weights, or another norm (gn, bn)"
        )
    if counts.get("BatchNorm2D") and images_per_device < 8:
        get_logger().warning(
            "bn is trained on %d images per device; its statistics are poor below 8: consider gn, or frozen_bn with "
            "pretrain_weights",
            images_per_device,
        )


def _warn_about_sizes(trained: Sequence[int] | None, evaluated: int) -> None:
    """Log a warning where evaluation's size is none that training draws from, as when a config changes one of two."""
    if trained is not None and not min(trained) <= evaluated <= max(trained):
        get_logger().warning(
            "training resizes short sides to %d..%d (data.augment.short_sides), evaluation to %d "
            "(data.preprocess.short_side): set data.augment.short_sides=null to train at the latter",
            *(min(trained), max(trained), evaluated),
        )


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as floats, with one transfer from the device."""
    stacked = paddle.stack([value.detach().astype("float32") for value in values.values()]).numpy()
    return dict(zip(values, stacked.tolist(), strict=True))


def _iteration_seed(seed: int, iteration: int, rank: int) -> int:
    """Every iteration's sampling has a seed of its own, so that resuming needs no generator's state."""
    return int(np.random.SeedSequence((seed, iteration, rank)).generate_state(1)[0])


def _plan(config: Config, per_epoch: int) -> Plan:
    def iterations(key: str) -> int | None:
        duration = config["train"][key]
        if duration is None:
            return None
        count = to_iterations(duration, per_epoch)
        if count == 0:
            raise UserError(f"{config.origin(f'train.{key}')}: train.{key}: expected more than nothing, got {duration}")
        return count

    plan = Plan(iterations("length"), per_epoch, iterations("checkpoint_every"), iterations("evaluate_every"))
    warmup = config["schedule"]["warmup_iterations"]
    if warmup >= plan.total:
        get_logger().warning("the warm-up of %d iterations is not over when training ends after %d", warmup, plan.total)
    mimic = config["model"]["mimic"]
    if mimic is not None and mimic["start_iteration"] >= plan.total:
        get_logger().warning(
            "mimicking never begins: model.mimic.start_iteration is %d, training ends after %d iterations",
            *(mimic["start_iteration"], plan.total),
        )
    return plan


def _describe(config: Config, folder: Path, dataset: CocoDataset) -> None:
    """Write config.yml and classes.json."""
    classes = [
        {"id": category_id, "name": name}
        for category_id, name in zip(dataset.category_ids.tolist(), dataset.class_names, strict=True)
    ]
    for name, text in (("config.yml", config.dump()), ("classes.json", json.dumps(classes, indent=1))):
        try:
            with atomic_writer(folder / name) as file:
                file.write(text.encode())
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be written: {error.strerror}; choose another output") from error
