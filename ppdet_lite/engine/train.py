"""Training: set up, loop, checkpoints."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn

from ppdet_lite import __version__
from ppdet_lite.core import runtime
from ppdet_lite.core.checkpoint import latest_checkpoint, load_checkpoint, prune, save_checkpoint
from ppdet_lite.core.config import Config
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.core.files import atomic_writer
from ppdet_lite.core.log import MetricsWriter, Progress, get_logger, setup
from ppdet_lite.core.registry import build
from ppdet_lite.core.weights import match_weights
from ppdet_lite.data.coco import CocoDataset
from ppdet_lite.data.loader import TrainBatches
from ppdet_lite.engine.board import Board
from ppdet_lite.engine.duration import to_iterations
from ppdet_lite.engine.evaluate import evaluate
from ppdet_lite.engine.optimizer import optimizer_state, restore_optimizer
from ppdet_lite.engine.setup import build_dataset, build_model, load_pretrained, use_device
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import FrozenBatchNorm
from ppdet_lite.structures import Targets

log = get_logger()


class Plan(NamedTuple):
    """The lengths of a run, in iterations; 0 for "only at the end" or never."""

    total: int
    per_epoch: int
    checkpoint_every: int
    evaluate_every: int

    def due(self, every: int, iteration: int) -> bool:
        """Whether something that happens `every` so many iterations, and at the end, is due after an iteration."""
        return iteration == self.total or (every > 0 and iteration % every == 0)


class Progression(NamedTuple):
    """How far a run has come."""

    iteration: int = 0
    best: dict[str, float] | None = None  # {"AP": ..., "iteration": ...} of the best evaluation


def train(config: Config, folder: Path, resume: str | None = None, evaluate_at_end: bool = False) -> None:
    """Train as a config says, writing into the run's folder.

    resume: None for a new run, "auto" to go on from the latest checkpoint in the folder (if there is one), or a
        checkpoint's folder. The result is that of an uninterrupted run, bit for bit on a CPU.
    evaluate_at_end: evaluate the final model even where `train.evaluate_every` is null.
    """
    rank, world = paddle.distributed.get_rank(), paddle.distributed.get_world_size()
    start = _starting_point(folder, resume)
    setup(rank, folder / "train.log")
    log.info(
        "ppdet_lite %s, paddle %s, device %s, seed %d",
        __version__,
        paddle.__version__,
        use_device(config),
        config["runtime"]["seed"],
    )
    for setting in runtime.applied():
        log.info("runtime: %s", setting)
    if world > 1:
        paddle.distributed.init_parallel_env()

    train_set = build_dataset(config, "train")
    data = build(config["data"], train=train_set, val=None)
    wants_evaluation = evaluate_at_end or config["train"]["evaluate_every"] is not None
    val_set = build_dataset(config, "val", train_set.class_names) if wants_evaluation else None
    batches = TrainBatches(
        train_set, data.preprocess, data.augment, data.loader, config["runtime"]["seed"], rank, world
    )
    plan = _plan(config, batches.iterations_per_epoch)
    log.info(
        "%d classes, %d training images, %d iterations per epoch, %d in all",
        train_set.num_classes,
        len(train_set),
        plan.per_epoch,
        plan.total,
    )

    model = build_model(config, train_set.class_names)
    if start is None and config["pretrain_weights"] is not None:
        load_pretrained(model, config["pretrain_weights"])
    warn_about_norms(model, data.loader.batch_size, start is None and config["pretrain_weights"] is None)
    settings = build(config["optimizer"])
    images_per_step = data.loader.batch_size * world
    lr = settings.scaled_lr(images_per_step)
    log.info(
        "learning rate %g: base_lr %g for %d images, here %d on each of %d devices",
        lr,
        settings.base_lr,
        settings.base_batch,
        data.loader.batch_size,
        world,
    )
    optimizer = settings.build(model)
    done = Progression() if start is None else _restore(start, model, optimizer, train_set, config)

    main = rank == 0
    if main:
        _write_description(config, folder, train_set)
    metrics = MetricsWriter(folder / "metrics.jsonl", done.iteration) if main else None
    board = Board(folder / "vdl") if main else None
    progress = Progress(plan.total, done.iteration, config["train"]["log_every"]) if main else None
    schedule = build(config["schedule"])
    network = paddle.DataParallel(model) if world > 1 else model
    stream = batches.iterate(done.iteration)
    try:
        for iteration in range(done.iteration, plan.total):
            model.train()
            began = time.perf_counter()
            batch = next(stream)
            data_seconds = time.perf_counter() - began
            paddle.seed(_iteration_seed(config["runtime"]["seed"], iteration, rank))
            optimizer.set_lr(lr * schedule.factor(iteration, plan.total, plan.per_epoch))
            losses, watched = train_step(network, optimizer, batch)
            done = done._replace(iteration=iteration + 1)
            if main:
                seconds = time.perf_counter() - began
                progress.update(done.iteration, losses, optimizer.get_lr(), seconds, data_seconds)
                if done.iteration % config["train"]["log_every"] == 0 or done.iteration == plan.total:
                    times = {"seconds": seconds, "data_seconds": data_seconds}
                    row = {"epoch": iteration // plan.per_epoch, "lr": optimizer.get_lr(), **losses, **watched, **times}
                    metrics.write(done.iteration, row)
                    board.scalars(done.iteration, row)
            if val_set is not None and plan.due(plan.evaluate_every, done.iteration):
                results = evaluate(model, val_set, data.preprocess, data.loader, folder)
                if main:
                    board.scalars(done.iteration, {f"val_{k}": v for k, v in results.items() if k.startswith("A")})
                    board.preview(done.iteration, model, val_set, data.preprocess, config["train"]["preview_images"])
                    if done.best is None or results["AP"] > done.best["AP"]:
                        done = done._replace(best={"AP": results["AP"], "iteration": done.iteration})
                        _save(folder / "checkpoints" / "best", model, None, config, train_set, done)
            if main and plan.due(plan.checkpoint_every, done.iteration):
                target = folder / "checkpoints" / f"iter_{done.iteration:08d}"
                _save(target, model, optimizer, config, train_set, done)
                prune(target.parent, config["train"]["keep_last"])
    finally:
        stream.close()
        if main:
            progress.close()
            metrics.close()
            board.close()
    log.info("done: %s", folder)


def train_step(
    network: nn.Layer, optimizer: paddle.optimizer.Optimizer, batch: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """One step on a batch; returns the losses and the watched metrics.

    Raises RunFailed, before anything is updated, when a loss is not finite.
    """
    output = network(*to_tensors(batch))
    losses = _numbers(output.losses)
    if not np.isfinite(list(losses.values())).all():
        raise RunFailed(
            f"a loss is not finite: {', '.join(f'{k} {v:g}' for k, v in losses.items())}; "
            f"image ids {batch['image_ids'].tolist()}; lower optimizer.base_lr, or set optimizer.clip_norm"
        )
    sum(output.losses.values()).backward()
    optimizer.step()
    optimizer.clear_grad()
    return losses, _numbers(output.metrics)


def to_tensors(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor, list[Targets] | None]:
    """The arguments of a detector's forward from a batch of the loader."""
    targets = None
    if "targets" in batch:
        targets = [
            Targets(
                paddle.to_tensor(target["boxes"], dtype="float32").reshape([-1, 4]),
                paddle.to_tensor(target["classes"], dtype="int64"),
                paddle.to_tensor(target["is_crowd"], dtype="bool"),
            )
            for target in batch["targets"]
        ]
    return (*(paddle.to_tensor(batch[key]) for key in ("images", "image_sizes", "scales")), targets)


def warn_about_norms(model: FasterRCNN, images_per_device: int, from_random: bool) -> None:
    """Log the norms of a model, and a warning for each that cannot work as it is used."""
    counts: dict[str, int] = {}
    for layer in model.sublayers():
        if isinstance(layer, (nn.BatchNorm2D, nn.SyncBatchNorm, nn.GroupNorm, FrozenBatchNorm)):
            counts[type(layer).__name__] = counts.get(type(layer).__name__, 0) + 1
    log.info("norms: %s", ", ".join(f"{count} {name}" for name, count in counts.items()) or "none")
    if from_random and counts.get("FrozenBatchNorm"):
        log.warning(
            "frozen_bn from random initialisation normalises nothing: set pretrain_weights, or another norm (gn, bn)"
        )
    if counts.get("BatchNorm2D") and images_per_device < 8:
        log.warning(
            "bn is trained on %d images per device, too few for good statistics below 8: consider gn or frozen_bn",
            images_per_device,
        )


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalar tensors as floats, with one transfer from the device."""
    stacked = paddle.stack([value.detach().astype("float32") for value in values.values()]).numpy()
    return dict(zip(values, stacked.tolist(), strict=True))


def _iteration_seed(seed: int, iteration: int, rank: int) -> int:
    """Every iteration's sampling has a seed of its own, so that resuming needs no generator's state."""
    return int(np.random.SeedSequence((seed, iteration, rank)).generate_state(1)[0])


def _plan(config: Config, per_epoch: int) -> Plan:
    section = config["train"]

    def every(key: str) -> int:
        return 0 if section[key] is None else to_iterations(section[key], per_epoch)

    plan = Plan(
        to_iterations(section["length"], per_epoch), per_epoch, every("checkpoint_every"), every("evaluate_every")
    )
    if plan.total == 0:
        raise UserError(f"{config.origin('train.length')}: train.length is 0")
    warmup = config["schedule"]["warmup_iterations"]
    if warmup >= plan.total:
        log.warning("the warm-up of %d iterations is not over when training ends after %d", warmup, plan.total)
    return plan


def _starting_point(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint to go on from; None for a new run, which must not overwrite another one."""
    if resume is not None and resume != "auto":
        return Path(resume)
    latest = latest_checkpoint(folder / "checkpoints")
    if latest is not None and resume is None:
        raise UserError(
            f"{folder} holds a run ({latest.name}): go on with --resume auto, "
            "or choose another place with -o output=FOLDER"
        )
    return latest


def _restore(
    path: Path, model: FasterRCNN, optimizer: paddle.optimizer.Optimizer, dataset: CocoDataset, config: Config
) -> Progression:
    checkpoint = load_checkpoint(path)
    meta = checkpoint.meta
    if meta["class_names"] != dataset.class_names:
        raise UserError(
            f"{path} was trained on {', '.join(meta['class_names'])}; {dataset.file} has {', '.join(dataset.class_names)}"
        )
    state = model.state_dict()
    report = match_weights({name: tuple(value.shape) for name, value in state.items()}, checkpoint.groups["model"])
    report.require_complete(str(path))
    if "optimizer" not in checkpoint.groups:
        raise UserError(
            f"{path} has no optimizer state; resume from an iter_ checkpoint, or use it as pretrain_weights"
        )
    model.set_state_dict(report.matched)
    restore_optimizer(optimizer, model, checkpoint.groups["optimizer"])
    changed = set(meta["config"].splitlines()) ^ set(config.dump().splitlines())
    if changed:
        log.warning("the config differs from the checkpoint's: %s", "; ".join(sorted(line.strip() for line in changed)))
    log.info("resumed from %s after iteration %d", path, meta["iteration"])
    return Progression(meta["iteration"], meta["best"])


def _save(
    folder: Path,
    model: FasterRCNN,
    optimizer: paddle.optimizer.Optimizer | None,
    config: Config,
    dataset: CocoDataset,
    done: Progression,
) -> None:
    groups = {"model": {name: value.numpy() for name, value in model.state_dict().items()}}
    if optimizer is not None:
        groups["optimizer"] = optimizer_state(optimizer, model)
    meta = {
        "iteration": done.iteration,
        "best": done.best,
        "class_names": dataset.class_names,
        "category_ids": dataset.category_ids.tolist(),
        "config": config.dump(),
        "versions": {"ppdet_lite": __version__, "paddle": paddle.__version__},
    }
    save_checkpoint(folder, groups, meta)


def _write_description(config: Config, folder: Path, dataset: CocoDataset) -> None:
    import json

    classes: Sequence[dict] = [
        {"id": category_id, "name": name}
        for category_id, name in zip(dataset.category_ids.tolist(), dataset.class_names, strict=True)
    ]
    try:
        for name, text in (("config.yml", config.dump()), ("classes.json", json.dumps(classes, indent=1))):
            with atomic_writer(folder / name) as file:
                file.write(text.encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; choose another output") from error
