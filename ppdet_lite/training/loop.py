"""Training: what a run needs is put together, and its steps are taken until it is finished or told to stop."""

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
from ppdet_lite.evaluation.coco_metric import require_backend
from ppdet_lite.modeling.amp import require_half
from ppdet_lite.ops import dispatch
from ppdet_lite.training.memory import exhaustion_told
from ppdet_lite.training.run import Run
from ppdet_lite.training.state import clear_folder, hold_folder


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


def _go_on(run: Run, stop: StopRequest) -> None:
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
) -> Run:
    """Whatever can be refused is refused before anything in the folder is touched: its log comes after that.

    held: where the hold on the folder goes.
    """
    log.configure(ranks.rank())
    if config["weights"] is not None:
        place = config.origin("weights")
        raise UserError(f"{place}: weights: is for evaluation and export; training starts from pretrain_weights")
    device = use_device(config)
    require_half(config["train"]["amp"], config.origin("train.amp"))
    ranks.start()
    start = ranks.first(lambda: hold_folder(folder, held, resume))
    evaluates = evaluate_at_end or config["train"]["evaluate_every"] is not None
    if evaluates:
        require_backend(config["eval"]["backend"], config["eval"].place_of("backend"))
    train_set = build_dataset(config, "train")
    val_set = build_dataset(config, "val", train_set.class_names)
    check_training_data(config, train_set, val_set)
    model = build_model(config, train_set.class_names)
    moved = ranks.first(lambda: clear_folder(folder, start, resume))
    log.configure(ranks.rank(), folder / "train.log")
    if moved is not None:
        get_logger().warning("%s", moved)
    if resume == "auto" and start is None:
        get_logger().info("nothing to resume in %s: a new run", folder)
    get_logger().info("ppdet_lite %s, paddle %s, device %s", __version__, paddle.__version__, device)
    for setting in (*runtime.applied(), dispatch.describe_convolution()):
        get_logger().info("%s", setting)
    for dataset in (train_set, val_set):
        log_notes(dataset)
    columns = {"train": train_set.statistics(), "val": val_set.statistics()}
    get_logger().info("data:\n%s", format_statistics(columns, train_set.class_names))
    data = build(config["data"], train=train_set, val=val_set if evaluates else None)
    return Run(config, folder, data, model, start)
