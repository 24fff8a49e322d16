"""The dump of a step whose loss or gradient is not finite: what is needed to repeat it, and what `diagnosis` found.

nan/iter_00000012/
  model.safetensors, batch.safetensors, checkpoint.json   a checkpoint: weights before the step, its batches and seeds
  config.yml                                              the run's config, used by the replay
  report.txt                                              the first value that is not finite, losses, gradient norms
"""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paddle import distributed as dist

from ppdet_lite.assembly.run_files import describe_checkpoint
from ppdet_lite.assembly.setup import build_model, state_arrays, state_shapes, use_device
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import NotFinite, RunFailed, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.modeling.amp import require_amp_support
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.norm import has_sync_bn
from ppdet_lite.optimization.optimizer import freeze
from ppdet_lite.storage.checkpoint import load_checkpoint, save_checkpoint
from ppdet_lite.storage.files import write_text
from ppdet_lite.storage.weights import match_weights
from ppdet_lite.training.diagnosis import Diagnosis, StepInput, diagnose

FOLDER = "nan"


def dump_step(
    folder: Path, step: StepInput, error: NotFinite, model: FasterRCNN, config: Config, dataset: CocoDataset
) -> RunFailed:
    """Write a failed step below a run's folder, and search for the first value that is not finite.

    Each rank of a distributed run writes its own batches. Returns the error to raise: the given one with the findings,
    and with the reason if the dump could not be written.
    """
    traceback.clear_frames(error.__traceback__)  # its frames hold the tensors of the step, which is repeated below
    rank = dist.get_rank()
    folder = folder / FOLDER / (f"iter_{step.iteration + 1:08d}" + (f".rank{rank}" if rank else ""))
    message = f"{error}; in iteration {step.iteration + 1}"
    command = f"ppdet-lite train --replay {folder}"
    meta = {
        "iteration": step.iteration,
        "seeds": list(step.seeds),
        "error": str(error),
        **describe_checkpoint(config, dataset.class_names, dataset.category_ids.tolist()),
    }
    groups = {"model": state_arrays(model), "batch": _flat(step.batches)}
    try:
        save_checkpoint(folder, groups, meta)
        write_text(folder / "config.yml", config.dump())
        if _synchronizes_ranks(model):
            return RunFailed(f"{message}; find the cause with {command}")
        report = _report(diagnose(model, step, config["train"]["amp"]))
        write_text(folder / "report.txt", "\n".join([message, *report, f"repeat: {command}", ""]))
    except UserError as failure:
        return RunFailed(f"{message}; not saved for a replay: {failure}")
    except (MemoryError, RuntimeError) as failure:  # in the search; the step is already saved
        return RunFailed(f"{message}; the search for the cause failed too ({type(failure).__name__}); {command}")
    return RunFailed(f"{message}; {report[0]}; repeat it with {command}")


def _synchronizes_ranks(model: FasterRCNN) -> bool:
    """Return whether a forward pass waits for other ranks, which do not take part in the search."""
    return dist.get_world_size() > 1 and has_sync_bn(model)


def replay(config: Config, folder: Path) -> None:
    """Repeat the step that `dump_step` saved, and log the findings. No weight is changed.

    config: that of the dump, possibly with overrides. Raises RunFailed when a loss or a gradient is not finite again,
    and UserError when the folder contains no such step or the config describes another model.
    """
    groups, meta = load_checkpoint(folder, only=("model", "batch"))
    get_logger().info("device %s; in the run: %s", use_device(config), meta["error"])
    require_amp_support(config["train"]["amp"], config.origin("train.amp"))
    model = build_model(config, meta["class_names"])
    report = match_weights(state_shapes(model), groups["model"])
    report.require_complete(str(folder))
    model.set_state_dict(report.matched)
    freeze(model, config["train"]["freeze"])
    model.train()
    step = StepInput(_nested(groups["batch"]), meta["iteration"], meta["seeds"])
    found = diagnose(model, step, config["train"]["amp"])
    first, *rest = _report(found)
    for line in rest:
        get_logger().info("%s", line)
    if not found.is_finite:
        raise RunFailed(f"iteration {meta['iteration'] + 1} fails again: {first}")
    get_logger().info("iteration %d does not fail again: all losses and gradients are finite", meta["iteration"] + 1)


def _report(found: Diagnosis) -> list[str]:
    """Return the findings as lines. The first line names the first value that is not finite."""
    return [
        "everything is finite when the step is repeated" if found.first is None else f"first not finite: {found.first}",
        *(f"losses of batch {i}: {_format(losses)}" for i, losses in enumerate(found.losses, 1)),
        f"gradient norms: {_format(found.gradient_norms)}",
    ]


def _format(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _flat(value: Any, path: str = "") -> dict[str, np.ndarray]:
    """Flatten nested mappings and sequences of arrays to arrays by path, such as "0/targets/1/boxes"."""
    if isinstance(value, np.ndarray):
        return {path: value}
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {
        name: array for key, item in items for name, array in _flat(item, f"{path}/{key}" if path else str(key)).items()
    }


def _nested(arrays: Mapping[str, np.ndarray]) -> Any:
    """Invert `_flat`. A mapping whose keys are all numbers becomes a list."""
    if "" in arrays:
        return arrays[""]
    parts: dict[str, dict[str, np.ndarray]] = {}
    for path, array in arrays.items():
        key, _, rest = path.partition("/")
        parts.setdefault(key, {})[rest] = array
    if all(key.isdigit() for key in parts):
        return [_nested(parts[key]) for key in sorted(parts, key=int)]
    return {key: _nested(part) for key, part in parts.items()}
