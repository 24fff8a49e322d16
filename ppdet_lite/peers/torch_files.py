"""Reads both formats of torch.save without torch, and without executing anything in the file.

Since torch 1.6, a file is a zip archive: `data.pkl` describes the tensors, `data/<key>` has the bytes of a storage.
The legacy format is a sequence of pickles (magic number, version, system information, the objects, the storages' keys)
followed by the storages. Objects that are not part of a tensor become placeholders: they are ignored beside the weights
and refused among them.
"""

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ppdet_lite.storage.array_pickle import ArrayUnpickler
from ppdet_lite.storage.state_dicts import from_bfloat16

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
TYPES = {  # torch's storage class without "Storage" -> NumPy dtype; NumPy has no bfloat16
    "Float": "<f4",
    "Double": "<f8",
    "Half": "<f2",
    "BFloat16": "bfloat16",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}


class UnsupportedTensor(Exception):
    """A file has tensors whose numbers NumPy does not have."""


class Placeholder:
    """Replaces an object of an unknown class. Accepts any call that a pickle makes, and ignores it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Ignore the arguments."""

    def __setstate__(self, _: Any) -> None:
        """Ignore the state."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Ignore the item."""

    def append(self, _: Any) -> None:
        """Ignore the item."""

    def extend(self, _: Any) -> None:
        """Ignore the item."""

    def add(self, _: Any) -> None:
        """Ignore the item."""


class StateDict(dict):
    """An OrderedDict in the pickle. The metadata that torch attaches to a state dict is ignored."""

    def __setstate__(self, _: Any) -> None:
        """Ignore the state."""


class Storage(NamedTuple):
    """A reference to the numbers that tensors are views of."""

    key: str
    kind: str  # one of the values of TYPES
    count: int


class Tensor(NamedTuple):
    """A view of a storage that is not yet read. Offset and strides are in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchUnpickler(ArrayUnpickler):
    """Loads plain data, NumPy arrays and torch tensors. Other objects become a `Placeholder`."""

    def allowed_names(self) -> dict[str, Any]:
        """Return NumPy's names and torch's."""
        storages = {f"torch.{name}Storage": kind for name, kind in TYPES.items()}
        return {
            **super().allowed_names(),
            **storages,
            "collections.OrderedDict": StateDict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
        }

    def disallowed(self, name: str) -> type:
        """Return a placeholder class with the name of the class that it replaces."""
        return type(name, (Placeholder,), {})

    def persistent_load(self, identity: Any) -> Any:
        """Read ("storage", type, key, device, count) and, in legacy files, view metadata, which must be None.

        Legacy files of whole models also have ("module", class, file, source code), for which the class is returned.
        """
        if identity[0] == "module" and isinstance(identity[1], type) and issubclass(identity[1], Placeholder):
            return identity[1]
        tag, kind, key, _, count = identity[:5]
        if tag == "storage" and isinstance(kind, type) and issubclass(kind, Placeholder):  # quantized, float8, ...
            raise UnsupportedTensor(f"has tensors in a {kind.__name__}")
        if tag != "storage" or kind not in TYPES.values() or (len(identity) > 5 and identity[5] is not None):
            raise ValueError(f"not a reference to a storage: {identity!r:.80}")
        return Storage(str(key), kind, int(count))

    def _tensor(self, storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without a storage")
        return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))

    def _parameter(self, tensor: Tensor, *_: Any) -> Tensor:
        return tensor


def load_torch(path: Path) -> Any:
    """Return the content of a file of torch.save, with tensors as arrays (bfloat16 as float32).

    Raises ValueError and other exceptions for a damaged file.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _load_zip(archive)
    with path.open("rb") as file:
        return _load_legacy(file)


def is_legacy(path: Path) -> bool:
    """Return whether a file has the format before torch 1.6, which begins with a pickled magic number."""
    number = pickle.dumps(LEGACY_MAGIC, protocol=2)[2:-1]  # without the header, which depends on the protocol
    with path.open("rb") as file:
        return number in file.read(64)


def _load_zip(archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    (description,) = [name for name in names if name.endswith("data.pkl") and name.count("/") <= 1]
    root = description.removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("written on a big-endian machine")
    sizes = {name: archive.getinfo(name).file_size for name in names}

    def read(storage: Storage) -> bytes:
        name = f"{root}data/{storage.key}"
        if sizes.get(name) != storage.count * _size(storage.kind):
            raise ValueError(f"storage {storage.key} has {sizes.get(name)} bytes")
        return archive.read(name)

    with archive.open(description) as file:
        return _with_arrays(TorchUnpickler(file).load(), read, {})


def _load_legacy(file: BinaryIO) -> Any:
    for _ in range(3):  # magic number, version, system information
        TorchUnpickler(file).load()
    content, keys = TorchUnpickler(file).load(), TorchUnpickler(file).load()
    storages = {storage.key: storage for storage in _storages(content)}
    if not storages:  # such as a whole model, whose tensors are in a placeholder
        return content
    data = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", file.read(8))
        if key not in storages or count != storages[key].count:
            raise ValueError(f"storage {key} does not match the tensors")
        size = count * _size(storages[key].kind)
        data[key] = file.read(size)
        if len(data[key]) != size:
            raise ValueError("the file ends too early")
    return _with_arrays(content, lambda storage: data[storage.key], {})


def _storages(content: Any) -> list[Storage]:
    if isinstance(content, Tensor):
        return [content.storage]
    values = content.values() if isinstance(content, dict) else content if isinstance(content, list | tuple) else ()
    return [storage for value in values for storage in _storages(value)]


def _with_arrays(content: Any, read: Callable[[Storage], bytes], seen: dict[str, np.ndarray]) -> Any:
    """Replace tensors in the content by arrays. A storage that several tensors share is read once."""
    if isinstance(content, Tensor):
        storage = content.storage
        if storage.key not in seen:
            seen[storage.key] = _numbers(read(storage), storage.kind)
        return _view(seen[storage.key], content)
    if isinstance(content, Mapping):
        return {key: _with_arrays(value, read, seen) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_arrays(value, read, seen) for value in content]
    return content


def _view(numbers: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor's view. Raises ValueError for a view that exceeds its storage."""
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    if min((offset, *shape, *strides)) < 0 or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
    if 0 not in shape and last >= len(numbers):
        raise ValueError(f"a tensor of shape {shape} exceeds its storage")
    if 0 in shape:
        return np.zeros(shape, numbers.dtype)
    byte_strides = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, byte_strides).copy()


def _numbers(data: bytes, kind: str) -> np.ndarray:
    if kind == "bfloat16":
        return from_bfloat16(np.frombuffer(data, "<u2"))
    return np.frombuffer(data, kind)


def _size(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize
