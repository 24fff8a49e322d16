"""Read the files that torch.save writes, in both its formats, without torch and without running what they hold.

Since torch 1.6 a file is a zip archive: `data.pkl` describes the tensors, `data/<key>` has the bytes of their storages.
Before, pickles followed each other: a magic number, a version, facts of the system, the objects, the storages' keys;
then the storages. Names in the pickles that are no tensor's stand for inert objects: what a trainer keeps beside the
weights does not matter, and among the weights such an object is refused.
"""

import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ppdet_lite.storage.array_pickle import ArrayUnpickler

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
TYPES = {
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


class Inert:
    """What stands for an object of a name that is not known: it takes everything and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.name = type(self).__name__

    def __setstate__(self, _: Any) -> None:
        """Take no state."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """Hold nothing."""

    def append(self, _: Any) -> None:
        """Hold nothing."""

    def extend(self, _: Any) -> None:
        """Hold nothing."""

    def add(self, _: Any) -> None:
        """Hold nothing."""


class Entries(dict):
    """An ordered dict of a state; torch hangs metadata on it, which is dropped."""

    def __setstate__(self, _: Any) -> None:
        """Take no state."""


class Storage(NamedTuple):
    """The numbers that tensors are views of, not yet read."""

    key: str
    kind: str  # of TYPES' values
    count: int


class Tensor(NamedTuple):
    """A view of a storage, not yet read: offset, shape and strides in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class TorchUnpickler(ArrayUnpickler):
    """Loads plain data, NumPy's arrays and torch's tensors; other names become `Inert`."""

    def known(self) -> dict[str, Any]:
        """NumPy's names and torch's."""
        storages = {f"torch.{name}Storage": kind for name, kind in TYPES.items()}
        return {
            **super().known(),
            **storages,
            "collections.OrderedDict": Entries,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "torch._utils._rebuild_parameter_with_state": self._parameter,
        }

    def unknown(self, name: str) -> type:
        """A class that does nothing, named as what it stands for."""
        return type(name, (Inert,), {})

    def persistent_load(self, identity: Any) -> Storage:
        """A reference to a storage: ("storage", type, key, device, count); old files add a view's data, now None."""
        tag, kind, key, _, count = identity[:5]
        if tag != "storage" or kind not in TYPES.values() or (len(identity) > 5 and identity[5] is not None):
            raise ValueError(f"a reference that is no storage's: {identity!r:.80}")
        return Storage(str(key), kind, int(count))

    def _tensor(self, storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
        if not isinstance(storage, Storage):
            raise ValueError("a tensor without a storage")
        return Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))

    def _parameter(self, tensor: Tensor, *_: Any) -> Tensor:
        return tensor


def load_torch(path: Path) -> Any:
    """What a file of torch.save holds, its tensors as arrays (bfloat16 as float32).

    Raises ValueError and others for anything damaged: a caller tells them as one.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _load_zip(archive)
    with path.open("rb") as file:
        return _load_legacy(file)


def is_legacy(path: Path) -> bool:
    """Whether a file begins as torch wrote before version 1.6: with its magic number as a pickle."""
    begins = pickle.dumps(LEGACY_MAGIC, protocol=2)[2:]  # the number; protocols differ in what stands before
    with path.open("rb") as file:
        return begins[:-1] in file.read(64)


def _load_zip(archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    (page,) = [name for name in names if name.endswith("data.pkl") and name.count("/") <= 1]
    root = page.removesuffix("data.pkl")
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("written on a big-endian machine")
    sizes = {name: archive.getinfo(name).file_size for name in names}

    def read(storage: Storage) -> bytes:
        name = f"{root}data/{storage.key}"
        if sizes.get(name) != storage.count * _size(storage.kind):
            raise ValueError(f"storage {storage.key} has {sizes.get(name)} bytes")
        return archive.read(name)

    with archive.open(page) as file:
        return _with_arrays(TorchUnpickler(file).load(), read, {})


def _load_legacy(file: BinaryIO) -> Any:
    for _ in range(3):  # magic number, version, facts of the system
        TorchUnpickler(file).load()
    content, keys = TorchUnpickler(file).load(), TorchUnpickler(file).load()
    storages = {storage.key: storage for storage in _storages(content)}
    data = {}
    for key in map(str, keys):
        (count,) = struct.unpack("<q", file.read(8))
        if key not in storages or count != storages[key].count:
            raise ValueError(f"storage {key} is not as the tensors say")
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
    """The content with arrays in place of tensors; a storage that several share is read once."""
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
    """The view's own copy. A view that would leave its storage is an error, not garbage."""
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    if min((offset, *shape, *strides)) < 0 or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides))
    if 0 not in shape and last >= len(numbers):
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage")
    if 0 in shape:
        return np.zeros(shape, numbers.dtype)
    steps = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps).copy()


def _numbers(data: bytes, kind: str) -> np.ndarray:
    if kind == "bfloat16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, kind)


def _size(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize
