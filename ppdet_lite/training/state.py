"""The state of a run: saved in checkpoints, and restored to resume."""

import contextlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import yaml

from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.run_files import describe_checkpoint
from ppdet_lite.assembly.setup import state_arrays, state_shapes
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.yaml_nodes import flow
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.modeling.amp import LossScale
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.optimization.optimizer import optimizer_state, restore_optimizer
from ppdet_lite.storage.checkpoint import (
    checkpoint_meta,
    is_checkpoint,
    is_complete_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from ppdet_lite.storage.files import folder_lock
from ppdet_lite.storage.weights import match_weights

# Files of a run that may exist without any complete checkpoint. A new run moves them aside.
LEFTOVERS = ("train.log", "metrics.jsonl", "vdl", "nan", "curves.png", "checkpoints", "bbox.json", "metrics.json")


class RunState(NamedTuple):
    """The state of a run beside weights and optimizer. Random numbers depend only on seed and iteration."""

    iteration: int = 0  # number of finished iterations
    best: dict[str, float] | None = None  # {"AP": ..., "iteration": ...} of the best evaluation
    stale: int = 0  # number of evaluations since the best one
    evaluated: int = 0  # the iteration of the latest evaluation
    loss_scale: LossScale = LossScale()  # for float16
    offset: int = 0  # iteration - offset is the progress in steps of the current size; see `convert_progress`

    def after_evaluation(self, metric: str, value: float) -> "RunState":
        """Return the state after an evaluation with this value of the metric that selects the best model."""
        best = (self.best or {}).get(metric)
        sign = -1 if metric == "loss" else 1
        if best is None or sign * value > sign * best:
            return self._replace(evaluated=self.iteration, stale=0, best={metric: value, "iteration": self.iteration})
        return self._replace(evaluated=self.iteration, stale=self.stale + 1)


def lock_folder(folder: Path, resources: contextlib.ExitStack, resume: str | None) -> Path | None:
    """Lock a run's folder until `resources` closes. Returns the checkpoint to resume from, None for a new run.

    resume: None; "auto" for the folder's latest checkpoint or, without one, its best one; or a checkpoint's folder.

    Raises UserError when another run uses the folder, and when a new run, or one that resumes from a checkpoint of
    another folder, would overwrite the run in this one.
    """
    resources.enter_context(folder_lock(folder))
    if resume is not None and resume != "auto":
        start, checkpoints = Path(resume), folder / "checkpoints"
        if start.resolve().parent != checkpoints.resolve() and latest_checkpoint(checkpoints) is not None:
            raise UserError(f"{folder} contains another run than {start}; choose another folder with -o output=FOLDER")
        return start
    latest, best = latest_checkpoint(folder / "checkpoints"), folder / "checkpoints/best"
    if latest is None and is_checkpoint(best):  # the disk was full before the first iter_ checkpoint
        latest = best
    if latest is not None and resume is None:
        raise UserError(
            f"{folder} contains a run ({latest.name}): resume it with --resume auto, "
            "or choose another folder with -o output=FOLDER"
        )
    return latest


def clear_folder(folder: Path, start: Path | None, resume: str | None) -> str | None:
    """Move obsolete files in a run's folder aside. Returns a message about what was moved, or None.

    These are the files of a run without a checkpoint and, when the user resumes from an earlier checkpoint, the later
    checkpoints. start: the checkpoint to resume from. Raises UserError when they cannot be moved.
    """
    if start is None:
        obsolete, what = [folder / name for name in LEFTOVERS], "the files of an earlier run without a checkpoint were"
    elif resume == "auto" or start.resolve().parent != (folder / "checkpoints").resolve():
        return None
    else:
        obsolete, what = _later_than(start), f"checkpoints after {start.name} were"
    aside = _set_aside(folder, [path for path in obsolete if path.exists()])
    return aside and f"{what} moved to {aside}"


def _later_than(start: Path) -> list[Path]:
    """Return the checkpoints in the same folder with more iterations, including the best one and incomplete ones."""
    done = checkpoint_meta(start)["iteration"]
    return [path for path in sorted(start.parent.iterdir()) if path.name[0] != "." and _iterations(path) > done]


def _iterations(path: Path) -> int:
    """Return a checkpoint's number of iterations, read from its name if it is incomplete; -1 if that has none."""
    if is_complete_checkpoint(path):
        return checkpoint_meta(path)["iteration"]
    number = path.name.removeprefix("iter_")
    return int(number) if number.isdecimal() else -1


def _set_aside(folder: Path, paths: Sequence[Path]) -> Path | None:
    """Move files into a new folder aborted-N of the run's folder and return it; None if there are no files."""
    if not paths:
        return None
    number = next(n for n in itertools.count(1) if not (folder / f"aborted-{n}").exists())
    aside = folder / f"aborted-{number}"
    try:
        aside.mkdir()
        for path in paths:
            path.rename(aside / path.name)
    except OSError as error:
        raise UserError(f"{aside}: cannot be written: {error.strerror}; choose another output") from error
    return aside


def save_state(
    folder: Path,
    model: FasterRCNN,
    optimizer: paddle.optimizer.Optimizer,
    config: Config,
    dataset: CocoDataset,
    state: RunState,
    average: dict[str, np.ndarray] | None = None,
) -> None:
    """Write a checkpoint with everything needed to use the model and to resume its training.

    Its groups are `model`, the weights that training continues from; `optimizer`; and `ema`, the average of the
    weights, if the run has one. `best` is a checkpoint of the same content. Resuming uses all groups. Evaluation,
    inference, export and `pretrain_weights` use `ema`, if present, else `model` (see `storage.weights.read_weights`).
    """
    groups = {
        "model": state_arrays(model),
        "optimizer": optimizer_state(optimizer, model),
        **({} if average is None else {"ema": average}),
    }
    meta = {
        **state._asdict(),
        "devices": ranks.world(),
        **describe_checkpoint(config, dataset.class_names, dataset.category_ids.tolist()),
    }
    save_checkpoint(folder, groups, meta)


def restore_state(
    path: Path, model: FasterRCNN, optimizer: paddle.optimizer.Optimizer, config: Config, dataset: CocoDataset
) -> tuple[RunState, dict[str, np.ndarray] | None]:
    """Load a checkpoint into a model and its optimizer. Returns the run's state and its average of weights or None.

    Raises UserError when the checkpoint does not fit the model or the data.
    """
    groups, meta = load_checkpoint(path)
    if meta["class_names"] != dataset.class_names:
        raise UserError(
            f"{path} was trained on {', '.join(meta['class_names'])}; "
            f"{dataset.file} has {', '.join(dataset.class_names)}"
        )
    if "optimizer" not in groups:
        raise UserError(
            f"{path} has no optimizer state; resume from an iter_ checkpoint, or use it as pretrain_weights"
        )
    average = groups.get("ema")
    for arrays in (groups["model"], average):
        if arrays is not None:
            _require_fit(model, arrays, path)
    model.set_state_dict(groups["model"])
    restore_optimizer(optimizer, model, groups["optimizer"])
    before, now = (yaml.safe_load(text) for text in (meta["config"], config.dump()))
    if differences := _differences(before, now):
        get_logger().warning("the config differs from the checkpoint's: %s", "; ".join(differences))
    get_logger().info("resumed from %s after iteration %d", path, meta["iteration"])
    if average is not None and _are_equal(groups["model"], average):
        message = (
            "%s: its own weights are the average, as in `best` of earlier versions: training continues from the average"
        )
        get_logger().warning(message, path)
    metric = config["train"]["best_metric"]
    if meta.get("best") and metric not in meta["best"]:
        get_logger().warning(
            "train.best_metric is %s now: the next evaluation replaces checkpoints/best (%s)", metric, meta["best"]
        )
    fields = {key: meta[key] for key in RunState._fields if key in meta}
    fields["loss_scale"] = LossScale(*fields.get("loss_scale", ()))
    state = RunState(**{"evaluated": meta["iteration"], **fields})
    steps = StepSize.of(before, meta.get("devices", ranks.world())), StepSize.of(now, ranks.world())
    return convert_progress(state, *steps, dataset.epoch_length), average


def _require_fit(model: FasterRCNN, arrays: dict[str, np.ndarray], path: Path) -> None:
    """Raise UserError unless the arrays in a checkpoint are all the weights of a model."""
    try:
        match_weights(state_shapes(model), arrays).require_complete(str(path))
    except UserError as error:
        remedy = f"resume with the model it was trained with, or start a new run with -o pretrain_weights={path}"
        raise UserError(f"{error}; {remedy}") from error


def _are_equal(arrays: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:
    """Return whether all arrays equal those of the same name, bit for bit."""
    return all(np.array_equal(array, others[name]) for name, array in arrays.items())


class StepSize(NamedTuple):
    """The settings that determine the number of images in a training step."""

    batch_size: int
    devices: int
    accumulate: int

    @classmethod
    def of(cls, config: dict[str, Any], devices: int) -> "StepSize":
        """Return the step size of a config on a number of devices."""
        return cls(config["data"]["loader"]["batch_size"], devices, config["train"].get("accumulate", 1))

    @property
    def images(self) -> int:
        """The number of images in a step."""
        return self.batch_size * self.devices * self.accumulate

    def per_epoch(self, epoch_length: int) -> int:
        """Return the number of steps in an epoch of `epoch_length` images."""
        batches = max(epoch_length // (self.batch_size * self.devices), 1)
        return max(batches // self.accumulate, 1)

    def __str__(self) -> str:
        return f"{self.images} images ({self.batch_size} x {self.devices} devices x {self.accumulate} batches)"


def convert_progress(state: RunState, before: StepSize, now: StepSize, epoch_length: int) -> RunState:
    """Keep the number of epochs done when a resumed run has another number of images per step than its checkpoint.

    `iteration` continues to count; `offset` changes, so that length, schedule and evaluations follow the epochs.
    """
    if before.images == now.images:
        if before != now:
            get_logger().info(f"the checkpoint's steps have {before}, those of this run {now}")
        return state
    epochs = (state.iteration - state.offset) / before.per_epoch(epoch_length)
    position = round(epochs * now.per_epoch(epoch_length))
    get_logger().warning(
        f"the checkpoint's steps have {before}, those of this run {now}: {epochs:.2f} epochs are done, which are "
        f"{position} iterations of this run; length, schedule, evaluations and learning rate follow the new steps"
    )
    return state._replace(offset=state.iteration - position)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the differences between two configs, each as "a.b: old -> new"."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        prefix = f"{path}." if path else ""
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{prefix}{key}")]
    return [f"{path}: {flow(old)} -> {flow(new)}"]
