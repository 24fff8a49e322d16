"""Reads weights files of other projects: .pdparams, .safetensors, and others by their content (.pth, .pkl)."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.peers.torch_files import Placeholder, TorchUnpickler, UnsupportedTensor, is_legacy, load_torch
from ppdet_lite.storage.array_pickle import flatten, one_line
from ppdet_lite.storage.content_limit import ContentLimit
from ppdet_lite.storage.state_dicts import STATES, float32_arrays, select_weights
from ppdet_lite.storage.weights import read_weights


class PeerFile(NamedTuple):
    """The content of another project's weights file."""

    arrays: dict[str, np.ndarray]
    class_names: list[str] | None  # None if the file has none
    source: str  # the file, for messages


def read_peer_file(path: Path) -> PeerFile:
    """Read the weights, as float32, and, if present, the class names of another project's file.

    Executes nothing in the file. Raises UserError for a file that is missing, damaged, a whole pickled model, or small
    and would become huge, and for a weight that is not numeric or not finite.
    """
    path = Path(path)
    if path.suffix in (".pdparams", ".safetensors") or path.is_dir():
        weights = read_weights(path)
        return PeerFile(weights.arrays, None, weights.source)
    try:
        limit = ContentLimit(path)
        content = _load(path, limit)
        _refuse_model(path, content)
        arrays = flatten(_state(content, path), limit)
    except UserError:
        raise
    except UnsupportedTensor as error:
        raise UserError(f"{path}: {error}, a type that cannot be read; save the weights as float32") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged bytes make an unpickler raise nearly anything
        raise UserError(f"{path}: damaged, or not a weights file ({one_line(error)}); download it again") from error
    return PeerFile(float32_arrays(arrays, str(path)), _class_names(content), str(path))


def _load(path: Path, limit: ContentLimit) -> Any:
    with path.open("rb") as file:
        if not file.read(1):
            raise ValueError("the file is empty")
    if zipfile.is_zipfile(path) or is_legacy(path):
        return load_torch(path, limit)
    with path.open("rb") as file:  # a pickle of NumPy arrays, as in detectron2's model zoo
        return TorchUnpickler(file, limit, encoding="latin1").load()


def _refuse_model(path: Path, content: Any) -> None:
    """Raise UserError for a model pickled as a whole, alone or in a trainer's dict instead of its weights."""
    entries = [content.get(key) for key in STATES] if isinstance(content, dict) else [content]
    model = next((entry for entry in entries if isinstance(entry, Placeholder) and _is_class(entry)), None)
    if model is not None and not any(isinstance(entry, dict) for entry in entries):
        raise UserError(
            f"{path}: a whole pickled model ({_type_name(model)}), which only its own code can read; "
            "there, save its state_dict(): torch.save(model.state_dict(), FILE)"
        )


def _state(content: Any, path: Path) -> dict[str, Any]:
    """Return the weights, arrays and numbers, among the content saved by a trainer."""
    if not isinstance(content, dict):
        raise ValueError(f"a {_type_name(content)} instead of a dict of arrays")
    state = select_weights(content, str(path))
    invalid = next((name for name, value in state.items() if isinstance(value, Placeholder)), None)
    if invalid is not None:
        raise ValueError(f"entry {invalid!r} is a {_type_name(state[invalid])}, not an array")
    return {name: value for name, value in state.items() if value is not None}


def _class_names(content: dict[str, Any]) -> list[str] | None:
    """Return the class names in mmdetection's meta.CLASSES or, since version 3, meta.dataset_meta.classes."""
    meta = content.get("meta")
    if not isinstance(meta, dict):
        return None
    version_3 = meta.get("dataset_meta")
    names = meta.get("CLASSES")
    if not names and isinstance(version_3, dict):
        names = version_3.get("classes") or version_3.get("CLASSES")
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
        return list(names)
    return None


def _is_class(value: Placeholder) -> bool:
    """Return whether a placeholder replaces an object of a class, judged by the name, and not a function's result."""
    return _type_name(value).rpartition(".")[2].lstrip("_")[:1].isupper()


def _type_name(value: Any) -> str:
    return type(value).__name__
