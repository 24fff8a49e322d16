"""Training: prepare a run, and take its steps until it is finished or asked to stop."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import paddle

from ppdet_lite import __version__
from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.setup import (
    build_dataset,
    build_model,
    check_training_data,
    log_notes,
    use_device,
)
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.core import log, runtime
from ppdet_lite.core.errors import Stopped, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.core.stopping import StopRequest
from ppdet_lite.data.annotations.statistics import format_statistics
from ppdet_lite.evaluation.coco_backends import require_backend
from ppdet_lite.modeling.amp import describe_amp, require_amp_support, require_precision_support
from ppdet_lite.ops import dispatch
from ppdet_lite.training.memory import memory_errors_reported
from ppdet_lite.training.run import Run
from ppdet_lite.training.state import clear_folder, lock_folder


def train(config: Config, folder: Path, resume: str | None = None, evaluate_at_end: bool = False) -> None:
    """Train the model of a config, and write all results into the run's folder.

    resume: None for a new run; "auto" to resume from the latest checkpoint in the folder, if there is one; or a
        checkpoint's folder. Batches and sampling depend on the seed and the iteration alone, so the result equals that
        of an uninterrupted run, bit for bit on a CPU.
    evaluate_at_end: evaluate the final model even if `train.evaluate_every` is null.

    On a first SIGINT or SIGTERM, training finishes the current step, writes a checkpoint and raises Stopped. Before the
    first step it stops at once. A second signal ends the process. In a distributed run all ranks stop after the same
    step.

    Raises UserError for what the user can correct, and RunFailed when a loss is not finite (see `nan_dump`) or another
    rank has ended.
    """
    with contextlib.ExitStack() as resources:
        stop = resources.enter_context(StopRequest(single_process=ranks.world() == 1))
        try:
            with memory_errors_reported("training"):
                with _stop_before_first_step_logged(), stop.interruptible():
                    run = _prepare(config, folder, resume, evaluate_at_end, resources)
                _loop(resources.enter_context(contextlib.closing(run)), stop)
        except Exception as error:
            log.log_error_to_file(error)
            raise
    get_logger().info("done: %s", folder)


@contextlib.contextmanager
def _stop_before_first_step_logged() -> Iterator[None]:
    try:
        yield
    except Stopped as stopped:
        get_logger().warning("%s before the first step", stopped)
        raise


def _loop(run: Run, stop: StopRequest) -> None:
    """Take all steps. When a stop is requested, finish the current step and write a checkpoint of it."""
    try:
        if run.evaluation_missed:
            run.evaluate(stop)
            run.save()  # a finished run has no later checkpoint
        while not run.finished:
            with run.saved_on_failure():
                run.step(stop)
                if run.evaluation_due:
                    run.evaluate(stop)
                with stop.interruptible():
                    if run.evaluation_due or run.checkpoint_due:
                        run.record_details()
            if run.checkpoint_due:
                run.save()
    except Stopped as stopped:
        run.save()
        get_logger().warning("%s after iteration %d; resume with --resume auto", stopped, run.state.iteration)
        raise


def _prepare(
    config: Config, folder: Path, resume: str | None, evaluate_at_end: bool, resources: contextlib.ExitStack
) -> Run:
    """Check everything that can be refused, then create the log and the run.

    The folder is not changed before all checks have passed. resources: receives the lock on the folder.
    """
    log.configure(ranks.rank())
    if config["weights"] is not None:
        place = config.origin("weights")
        raise UserError(f"{place}: weights: is for evaluation and export; training starts from pretrain_weights")
    device = use_device(config)
    require_amp_support(config["train"]["amp"], config.origin("train.amp"))
    require_precision_support(config["runtime"]["precision"], config.origin("runtime.precision"))
    ranks.start()
    start = ranks.on_rank0(lambda: lock_folder(folder, resources, resume))
    evaluates = evaluate_at_end or config["train"]["evaluate_every"] is not None
    if evaluates:
        require_backend(config["eval"]["backend"], config["eval"].location_of("backend"))
    train_set = build_dataset(config, "train")
    val_set = build_dataset(config, "val", train_set.class_names)
    check_training_data(config, train_set, val_set)
    model = build_model(config, train_set.class_names)
    moved = ranks.on_rank0(lambda: clear_folder(folder, start, resume))
    log.configure(ranks.rank(), folder / "train.log")
    if moved is not None:
        get_logger().warning("%s", moved)
    if resume == "auto" and start is None:
        get_logger().info("no checkpoint in %s: starting a new run", folder)
    get_logger().info("ppdet_lite %s, paddle %s, device %s", __version__, paddle.__version__, device)
    for setting in (*runtime.applied_settings(), *dispatch.describe_libraries()):
        get_logger().info("%s", setting)
    if line := describe_amp(config["train"]["amp"]):
        get_logger().info("%s", line)
    for dataset in (train_set, val_set):
        log_notes(dataset)
    columns = {"train": train_set.statistics(), "val": val_set.statistics()}
    get_logger().info("data:\n%s", format_statistics(columns, train_set.class_names))
    data = build(config["data"], train=train_set, val=val_set if evaluates else None)
    return Run(config, folder, data, model, start)
