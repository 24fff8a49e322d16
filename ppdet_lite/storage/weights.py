"""Reads weights from a checkpoint, a .safetensors or a .pdparams file, and matches them with a model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize, safe_open

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.checkpoint import group_names, is_checkpoint, latest_checkpoint, load_checkpoint
from ppdet_lite.storage.pdparams import read_pdparams
from ppdet_lite.storage.state_dicts import float32_arrays, from_bfloat16


class Weights(NamedTuple):
    """A model's arrays and their source."""

    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]  # metadata of a checkpoint or a .safetensors file, else empty
    source: str  # the file or checkpoint folder, for messages


class ShapeMismatch(NamedTuple):
    """An array whose shape differs from the model's."""

    name: str
    expected: tuple[int, ...]
    found: tuple[int, ...]


class LoadReport(NamedTuple):
    """The result of matching named arrays with the names and shapes of a model's weights."""

    matched: dict[str, np.ndarray]
    missing: list[str]  # weights of the model without an array
    unexpected: list[str]  # arrays that the model does not have
    mismatched: list[ShapeMismatch]

    def summary(self) -> str:
        """Return a line of counts, then the names that do not match, grouped by reason, one per line."""
        lines = [self._counts()]
        for title, names in self._groups():
            lines += [f"{title}:", *(f"  {name}" for name in names)]
        return "\n".join(lines)

    @property
    def is_complete(self) -> bool:
        """Whether every array matches, with none missing or unexpected."""
        return not self._groups()

    def require_complete(self, source: str) -> None:
        """Raise UserError unless `is_complete`. `source` begins the message."""
        if groups := self._groups():
            raise UserError(f"{source}: the weights are of another model: {self._counts()}; {_examples(groups)}")
        self.require_floating_point(source)

    def require_any(self, source: str) -> None:
        """Raise UserError if no array matches."""
        if not self.matched:
            raise UserError(f"{source}: no array matches this model: {self._counts()}; {_examples(self._groups())}")
        self.require_floating_point(source)

    def require_floating_point(self, source: str) -> None:
        """Raise UserError if a matched array has integers, as in quantized models, or complex numbers."""
        for name, array in self.matched.items():
            if array.dtype.kind != "f":
                raise UserError(f"{source}: {name} is of type {array.dtype}; use weights that are not quantized")

    def _counts(self) -> str:
        return ", ".join(f"{len(getattr(self, name))} {name}" for name in self._fields)

    def _groups(self) -> list[tuple[str, list[str]]]:
        shapes = [f"{m.name}: expected {list(m.expected)}, found {list(m.found)}" for m in self.mismatched]
        groups = [("missing", self.missing), ("unexpected", self.unexpected), ("mismatched", shapes)]
        return [(title, names) for title, names in groups if names]


def read_weights(path: Path) -> Weights:
    """Read a model's weights, with floating-point numbers of any precision as float32.

    path: a `.pdparams` or `.safetensors` file; a checkpoint folder (its group `ema`, the average of the weights, if
        present, else `model`); a run's folder or its `checkpoints` folder (`best` if present, else the latest).

    Raises UserError for any other path, and for numbers that are not finite.
    """
    weights = _read(Path(path))
    return weights._replace(arrays=float32_arrays(weights.arrays, weights.source))


def _read(path: Path) -> Weights:
    if is_checkpoint(path):
        group = "ema" if "ema" in group_names(path) else "model"
        groups, meta = load_checkpoint(path, only=[group])
        return Weights(groups[group], meta, str(path))
    if path.is_dir():
        return _read(_best_or_latest(path))
    if not path.exists():
        raise UserError(f"{path}: no such weights; give a .pdparams or .safetensors file, a checkpoint or a run folder")
    if path.suffix == ".pdparams":
        return Weights(read_pdparams(path), {}, str(path))
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in (".pth", ".pt", ".pkl"):
        raise UserError(f"{path}: a file of another project; convert it with ppdet-lite convert-weights")
    raise UserError(f"{path}: unknown file type; give a .pdparams or .safetensors file, a checkpoint or a run folder")


def match_weights(
    expected: Mapping[str, tuple[int, ...]],
    arrays: Mapping[str, np.ndarray],
    rename: Callable[[str], str] | None = None,
) -> LoadReport:
    """Match arrays with the expected names and shapes of a model's weights.

    rename: converts a name in the file to the model's. Raises UserError if two arrays are given the same name.
    """
    found: dict[str, np.ndarray] = {}
    origins: dict[str, str] = {}
    for origin, array in arrays.items():
        name = origin if rename is None else rename(origin)
        if name in found:
            raise UserError(f"the arrays {origins[name]!r} and {origin!r} are both for the weight {name!r}; remove one")
        found[name], origins[name] = array, origin
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    return LoadReport(
        matched={name: found[name] for name in shapes if name in found and found[name].shape == shapes[name]},
        missing=[name for name in shapes if name not in found],
        unexpected=[name for name in found if name not in shapes],
        mismatched=[
            ShapeMismatch(name, shape, found[name].shape)
            for name, shape in shapes.items()
            if name in found and found[name].shape != shape
        ],
    )


def _best_or_latest(folder: Path) -> Path:
    checkpoints = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if is_checkpoint(checkpoints / "best"):
        return checkpoints / "best"
    latest = latest_checkpoint(checkpoints)
    if latest is None:
        raise UserError(f"{folder}: contains no intact checkpoint (best or iter_<number>); give a weights file")
    return latest


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="numpy") as file:
            names = sorted(file.keys())
            bfloat16 = {name for name in names if file.get_slice(name).get_dtype() == "BF16"}
            arrays = {name: file.get_tensor(name) for name in names if name not in bfloat16}
            meta = file.metadata() or {}
        for name, tensor in deserialize(path.read_bytes()) if bfloat16 else ():
            if name in bfloat16:
                arrays[name] = from_bfloat16(np.frombuffer(tensor["data"], "<u2").reshape(tensor["shape"]))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: damaged, or of a type that NumPy does not have ({error})") from error
    return Weights(arrays, meta, str(path))


def _examples(groups: list[tuple[str, list[str]]]) -> str:
    return "; ".join(
        f"{title} {names[0]}" + (f" and {len(names) - 1} more" * (len(names) > 1)) for title, names in groups
    )
