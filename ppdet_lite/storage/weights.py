"""Read weights from a checkpoint, a .safetensors or a .pdparams file, and tell how they fit a model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.checkpoint import group_names, is_checkpoint, latest_checkpoint, load_checkpoint
from ppdet_lite.storage.pdparams import read_pdparams


class Weights(NamedTuple):
    """A model's arrays and where they came from."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]  # a checkpoint's meta, a .safetensors file's metadata, else empty
    source: str  # the file or checkpoint folder that was read, for messages


class MisShaped(NamedTuple):
    """An array whose shape is not the one the model wants."""

    name: str
    wanted: tuple[int, ...]
    found: tuple[int, ...]


class LoadReport(NamedTuple):
    """How named arrays fit the names and shapes that a model wants."""

    matched: dict[str, np.ndarray]  # under the model's names
    missing: list[str]  # wanted, not found
    unexpected: list[str]  # found, not wanted; under the model's naming
    mis_shaped: list[MisShaped]

    def summary(self) -> str:
        """Counts on the first line, then every name that did not fit, grouped, each on its own line."""
        lines = [self._counts()]
        for title, names in self._groups():
            lines += [f"{title}:", *(f"  {name}" for name in names)]
        return "\n".join(lines)

    @property
    def is_complete(self) -> bool:
        """Whether every array fits and none is missing or left over."""
        return not self._groups()

    def require_complete(self, source: str) -> None:
        """Raise UserError unless every array fits and none is missing or left over."""
        if groups := self._groups():
            raise UserError(f"{source}: weights of another model: {self._counts()}; {_examples(groups)}")

    def require_any(self, source: str) -> None:
        """Raise UserError when not one array fits."""
        if not self.matched:
            raise UserError(f"{source}: no array fits this model: {self._counts()}; {_examples(self._groups())}")

    def _counts(self) -> str:
        counts = zip(self._fields, self, strict=True)
        return ", ".join(f"{len(part)} {name.replace('_', '-')}" for name, part in counts)

    def _groups(self) -> list[tuple[str, list[str]]]:
        shapes = [f"{name}: wanted {list(wanted)}, found {list(found)}" for name, wanted, found in self.mis_shaped]
        groups = [("missing", self.missing), ("unexpected", self.unexpected), ("mis-shaped", shapes)]
        return [(title, names) for title, names in groups if names]


def read_weights(path: Path) -> Weights:
    """Read a model's weights from a file or folder, told by its kind.

    A `.pdparams` or `.safetensors` file; a checkpoint folder (its group `ema`, an average of weights, if it has one,
    else `model`); a run's folder or its `checkpoints` folder (the checkpoint `best` if there is one, else the latest).
    Raises UserError for anything else.
    """
    path = Path(path)
    if is_checkpoint(path):
        group = "ema" if "ema" in group_names(path) else "model"
        groups, meta = load_checkpoint(path, only=[group])
        return Weights(groups[group], meta, str(path))
    if path.is_dir():
        return read_weights(_chosen_checkpoint(path))
    if not path.exists():
        raise UserError(f"{path}: no such weights; give a .pdparams or .safetensors file, a checkpoint or a run folder")
    if path.suffix == ".pdparams":
        return Weights(read_pdparams(path), {}, str(path))
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt", ".pkl"):
        raise UserError(f"{path}: another project's file; convert it with tools/convert_weights.py")
    raise UserError(f"{path}: unknown kind of weights; a .pdparams or .safetensors file, a checkpoint or a run folder")


def match_weights(
    wanted: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, np.ndarray],
    rename: Callable[[str], str] | None = None,
) -> LoadReport:
    """Sort arrays into those that fit the wanted names and shapes and those that do not.

    `rename` turns a name in the file into the model's name. Raises UserError when two arrays get one name.
    """
    found: dict[str, np.ndarray] = {}
    origins: dict[str, str] = {}
    for origin, array in arrays.items():
        name = origin if rename is None else rename(origin)
        if name in found:
            raise UserError(f"the weights {origins[name]!r} and {origin!r} both mean the model's {name!r}; remove one")
        found[name], origins[name] = array, origin
    shapes = {name: tuple(shape) for name, shape in wanted.items()}
    return LoadReport(
        matched={name: found[name] for name in shapes if name in found and found[name].shape == shapes[name]},
        missing=[name for name in shapes if name not in found],
        unexpected=[name for name in found if name not in shapes],
        mis_shaped=[
            MisShaped(name, shape, found[name].shape)
            for name, shape in shapes.items()
            if name in found and found[name].shape != shape
        ],
    )


def _chosen_checkpoint(folder: Path) -> Path:
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if is_checkpoint(checkpoints / "best"):
        return checkpoints / "best"
    latest = latest_checkpoint(checkpoints)
    if latest is None:
        raise UserError(f"{folder}: holds no intact checkpoint (best or iter_<number>); name a weights file")
    return latest


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            meta = file.metadata() or {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, TypeError) as error:
        raise UserError(f"{path}: damaged, or of a number type that NumPy lacks ({error})") from error
    return Weights(arrays, meta, str(path))


def _examples(groups: list[tuple[str, list[str]]]) -> str:
    return "; ".join(
        f"{title} {names[0]}" + (f" and {len(names) - 1} more" * (len(names) > 1)) for title, names in groups
    )
