"""How far a run has come: written into checkpoints, and read back to go on."""

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
from ppdet_lite.assembly.setup import state_shapes
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
    is_whole,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from ppdet_lite.storage.files import sole_writer
from ppdet_lite.storage.weights import match_weights

# Of a run that ended before its first checkpoint, or whose checkpoints are all torn.
LEFTOVERS = ("train.log", "metrics.jsonl", "vdl", "nan", "curves.png", "checkpoints", "bbox.json", "metrics.json")


class Progression(NamedTuple):
    """The part of a run's state that is neither weights nor optimizer; randomness needs none (see `train`)."""

    iteration: int = 0  # how many are done
    best: dict[str, float] | None = None  # {"AP": ..., "iteration": ...} of the best evaluation
    stale: int = 0  # evaluations since the best one
    evaluated: int = 0  # the iteration after which the latest evaluation was
    loss_scale: LossScale = LossScale()  # of float16


def hold_folder(folder: Path, held: contextlib.ExitStack, resume: str | None) -> Path | None:
    """Hold a run's folder against other runs, by `held`; return the checkpoint to go on from, None for a new run.

    resume: None, "auto" (the latest of the run's folder, or the best where it has no other) or a checkpoint's folder.

    Raises UserError when another run has the folder, and when a new run, or one that goes on from another's checkpoint,
    would overwrite an old one.
    """
    held.enter_context(sole_writer(folder))
    if resume is not None and resume != "auto":
        start, own = Path(resume), folder / "checkpoints"
        if start.resolve().parent != own.resolve() and latest_checkpoint(own) is not None:
            raise UserError(f"{folder} holds another run than {start}: choose another place with -o output=FOLDER")
        return start
    latest, best = latest_checkpoint(folder / "checkpoints"), folder / "checkpoints/best"
    if latest is None and is_checkpoint(best):  # the disk was full before the first other one
        latest = best
    if latest is not None and resume is None:
        raise UserError(
            f"{folder} holds a run ({latest.name}): go on with --resume auto, "
            "or choose another place with -o output=FOLDER"
        )
    return latest


def clear_folder(folder: Path, start: Path | None, resume: str | None) -> str | None:
    """Move out of a run's way what another course left in its folder; what was moved, as a line.

    That is what a run without a checkpoint wrote, and, where the user goes back to an earlier checkpoint, the later
    ones. Raises UserError when nothing can be moved.
    """
    if start is None:
        left, what = [folder / name for name in LEFTOVERS], "what an earlier run without a checkpoint left was"
    elif resume == "auto" or start.resolve().parent != (folder / "checkpoints").resolve():
        return None
    else:
        left, what = _later_than(start), f"checkpoints after {start.name} were"
    aside = _set_aside(folder, [path for path in left if path.exists()])
    return aside and f"{what} moved to {aside}"


def _later_than(start: Path) -> list[Path]:
    """The checkpoints beside one that have done more iterations, the best one and torn ones too."""
    done = checkpoint_meta(start)["iteration"]
    return [path for path in sorted(start.parent.iterdir()) if path.name[0] != "." and _iterations(path) > done]


def _iterations(path: Path) -> int:
    """How many a checkpoint has done, by its name where it is torn; -1 where that does not say."""
    if is_whole(path):
        return checkpoint_meta(path)["iteration"]
    number = path.name.removeprefix("iter_")
    return int(number) if number.isdecimal() else -1


def _set_aside(folder: Path, left: Sequence[Path]) -> Path | None:
    """Move what is left of another course into a folder beside; None if nothing is."""
    if not left:
        return None
    number = next(n for n in itertools.count(1) if not (folder / f"aborted-{n}").exists())
    aside = folder / f"aborted-{number}"
    try:
        aside.mkdir()
        for path in left:
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
    done: Progression,
    average: dict[str, np.ndarray] | None = None,
) -> None:
    """Write a checkpoint with all that is needed to use the model and to go on training it."""
    groups = {
        "model": {name: value.numpy() for name, value in model.state_dict().items()},
        "optimizer": optimizer_state(optimizer, model),
        **({} if average is None else {"ema": average}),
    }
    meta = {
        **done._asdict(),
        "devices": ranks.world(),
        **describe_checkpoint(config, dataset.class_names, dataset.category_ids.tolist()),
    }
    save_checkpoint(folder, groups, meta)


def restore_state(
    path: Path, model: FasterRCNN, optimizer: paddle.optimizer.Optimizer, config: Config, dataset: CocoDataset
) -> tuple[Progression, dict[str, np.ndarray] | None]:
    """Put a checkpoint back into a model and its optimizer; returns how far it was, and its average of weights.

    Raises UserError where they do not belong together.
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
    report = match_weights(state_shapes(model), groups["model"])
    try:
        report.require_complete(str(path))
    except UserError as error:
        way = f"resume with the model it was trained with, or start a new run with -o pretrain_weights={path}"
        raise UserError(f"{error}; {way}") from error
    model.set_state_dict(report.matched)
    restore_optimizer(optimizer, model, groups["optimizer"])
    before, now = (yaml.safe_load(text) for text in (meta["config"], config.dump()))
    if differences := _differences(before, now):
        get_logger().warning("the config differs from the checkpoint's: %s", "; ".join(differences))
    if meta.get("devices", ranks.world()) != ranks.world():
        _tell_of_devices(meta["devices"] * _images_per_device(before), _images_per_device(now), meta["devices"])
    get_logger().info("resumed from %s after iteration %d", path, meta["iteration"])
    done = {key: meta[key] for key in Progression._fields if key in meta}
    done["loss_scale"] = LossScale(*done.get("loss_scale", ()))
    return Progression(**{"evaluated": meta["iteration"], **done}), groups.get("ema")


def _images_per_device(config: dict[str, Any]) -> int:
    """The images that a step takes on one device."""
    return config["data"]["loader"]["batch_size"] * config["train"].get("accumulate", 1)


def _tell_of_devices(before: int, per_device: int, devices: int) -> None:
    """Say what another number of devices than a checkpoint's changes; `before`: images of its steps."""
    now = per_device * ranks.world()
    get_logger().warning(
        "the checkpoint is of a run on %d devices with %d images a step, this one is on %d with %d: %s",
        *(devices, before, ranks.world(), now),
        "the steps stay the same"
        if now == before
        else "the learning rate is that of the latter, iterations count on, and epochs are of other lengths; to keep "
        f"the steps as they were, make data.loader.batch_size x train.accumulate x devices {before}",
    )


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two configs, each as "a.b: old -> new"."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        prefix = f"{path}." if path else ""
        return [line for key in keys for line in _differences(old.get(key), new.get(key), f"{prefix}{key}")]
    return [f"{path}: {flow(old)} -> {flow(new)}"]
