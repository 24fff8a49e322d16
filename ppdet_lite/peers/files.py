"""Weights files of other projects, told by their content: .pdparams, .pth, .pkl, .safetensors."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.peers.torch_files import Inert, TorchUnpickler, is_legacy, load_torch
from ppdet_lite.storage.array_pickle import flatten, one_line
from ppdet_lite.storage.weights import read_weights

STATES = ("state_dict", "model", "model_state_dict", "blobs")  # where trainers put the weights, beside other things


class PeerFile(NamedTuple):
    """What a file of another project holds."""

    arrays: dict[str, np.ndarray]
    class_names: list[str] | None  # where the file has them
    source: str  # the file, for messages


def read_peer_file(path: Path) -> PeerFile:
    """Read the weights of another project's file, and its class names if it has any.

    Never runs what the file holds. Raises UserError for a file that is missing, damaged, or holds anything but numbers
    among its weights.
    """
    path = Path(path)
    if path.suffix in (".pdparams", ".safetensors") or path.is_dir():
        weights = read_weights(path)
        return PeerFile(weights.arrays, None, weights.source)
    try:
        content = _load(path)
        arrays = flatten(_state(content))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes make an unpickler raise nearly anything
        raise UserError(f"{path}: damaged, or no weights file ({one_line(error)}); fetch it again") from error
    return PeerFile(arrays, _class_names(content), str(path))


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        if not file.read(1):
            raise ValueError("the file is empty")
    if zipfile.is_zipfile(path) or is_legacy(path):
        return load_torch(path)
    with path.open("rb") as file:  # detectron2's model zoo: NumPy arrays in a pickle
        return TorchUnpickler(file, encoding="latin1").load()


def _state(content: Any) -> dict[str, Any]:
    """The weights among what a trainer saved, each an array or a number."""
    if not isinstance(content, dict):
        raise ValueError(f"a {_kind(content)}, not a dict of arrays")
    state = next((content[key] for key in STATES if isinstance(content.get(key), dict)), content)
    odd = next((name for name, value in state.items() if isinstance(value, Inert)), None)
    if odd is not None:
        raise ValueError(f"entry {odd!r} is a {_kind(state[odd])}, not an array")
    return {name: value for name, value in state.items() if value is not None}


def _class_names(content: dict[str, Any]) -> list[str] | None:
    """mmdetection's: meta.CLASSES, since version 3 meta.dataset_meta.classes."""
    meta = content.get("meta")
    if not isinstance(meta, dict):
        return None
    newer = meta.get("dataset_meta")
    names = meta.get("CLASSES") or (newer.get("classes") or newer.get("CLASSES") if isinstance(newer, dict) else None)
    is_list = isinstance(names, list | tuple) and bool(names) and all(isinstance(name, str) for name in names)
    return list(names) if is_list else None


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Inert) else type(value).__name__
