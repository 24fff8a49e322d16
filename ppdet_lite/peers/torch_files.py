"""Reads both formats of torch.save without torch, and without executing anything in the file.

Since torch 1.6, a file is a zip archive: `data.pkl` describes the tensors, `data/<key>` has the bytes of a storage.
torch does not compress them; entries that another program has compressed are read up to the `ContentLimit`.
The legacy format is a sequence of pickles (magic number, version, system information, the objects, the storages' keys)
followed by the storages. Objects that are not part of a tensor become placeholders: they are ignored beside the weights
and refused among them.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ppdet_lite.storage.array_pickle import ArrayUnpickler
from ppdet_lite.storage.content_limit import ContentLimit
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
    count: int  # type: ignore[assignment]  # hides tuple.count


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
            "collections.OrderedDict": self._state_dict,
            "torch.Size": self._tuple,
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

    def _state_dict(self, items: Collection = ()) -> StateDict:
        return StateDict(self._dict(items))

    def _parameter(self, tensor: Tensor, *_: Any) -> Tensor:
        return tensor


def load_torch(path: Path, limit: ContentLimit) -> Any:
    """Return the content of a file of torch.save, with tensors as arrays (bfloat16 as float32).

    Raises ValueError and other exceptions for a damaged file, UserError above the limit.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return _load_zip(archive, limit)
    with path.open("rb") as file:
        return _load_legacy(file, limit)


def is_legacy(path: Path) -> bool:
    """Return whether a file has the format before torch 1.6, which begins with a pickled magic number."""
    number = pickle.dumps(LEGACY_MAGIC, protocol=2)[2:-1]  # without the header, which depends on the protocol
    with path.open("rb") as file:
        return number in file.read(64)


def _load_zip(archive: zipfile.ZipFile, limit: ContentLimit) -> Any:
    limit.check(sum(entry.file_size for entry in archive.infolist()))  # before anything is decompressed
    names = archive.namelist()
    (description,) = [name for name in names if name.endswith("data.pkl") and name.count("/") <= 1]
    root = description.removesuffix("data.pkl")
    if f"{root}byteorder" in names and _read_entry(archive, f"{root}byteorder") != b"little":
        raise ValueError("written on a big-endian machine")
    sizes = {name: archive.getinfo(name).file_size for name in names}

    def read(storage: Storage) -> bytes:
        name = f"{root}data/{storage.key}"
        if sizes.get(name) != storage.count * _size(storage.kind):
            raise ValueError(f"storage {storage.key} has {sizes.get(name)} bytes")
        return _read_entry(archive, name)

    content = TorchUnpickler(io.BytesIO(_read_entry(archive, description)), limit).load()
    return _with_arrays(content, read, limit)


def _read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return an entry's bytes. `archive.read` would decompress all of them, even more than the entry declares."""
    entry = archive.getinfo(name)
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"entry {name} has compression method {entry.compress_type}")
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def _load_legacy(file: BinaryIO, limit: ContentLimit) -> Any:
    for _ in range(3):  # magic number, version, system information
        TorchUnpickler(file, limit).load()
    content, keys = TorchUnpickler(file, limit).load(), TorchUnpickler(file, limit).load()
    storages = _storages(content)
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
    return _with_arrays(content, lambda storage: data[storage.key], limit)


def _storages(content: Any) -> dict[str, Storage]:
    """Return the storages of all tensors in the content, by key."""
    found: dict[str, Storage] = {}

    def add(tensor: Tensor) -> Tensor:
        found[tensor.storage.key] = tensor.storage
        return tensor

    _map_tensors(content, add, {})
    return found


def _with_arrays(content: Any, read: Callable[[Storage], bytes], limit: ContentLimit) -> Any:
    """Replace tensors in the content by arrays. A storage that several tensors share is read once."""
    numbers: dict[str, np.ndarray] = {}

    def to_array(tensor: Tensor) -> np.ndarray:
        storage = tensor.storage
        if storage.key not in numbers:
            numbers[storage.key] = _numbers(read(storage), storage.kind)
        return _view(numbers[storage.key], tensor, limit)

    return _map_tensors(content, to_array, {})


def _map_tensors(content: Any, function: Callable[[Tensor], Any], done: dict[int, Any]) -> Any:
    """Return the content with its tensors replaced. What occurs several times is replaced once, as `done` by its id."""
    if not isinstance(content, Mapping | list | tuple):
        return content
    if id(content) not in done:
        if isinstance(content, Tensor):
            done[id(content)] = function(content)
        elif isinstance(content, Mapping):
            done[id(content)] = {key: _map_tensors(value, function, done) for key, value in content.items()}
        else:
            done[id(content)] = [_map_tensors(value, function, done) for value in content]
    return done[id(content)]


def _view(numbers: np.ndarray, tensor: Tensor, limit: ContentLimit) -> np.ndarray:
    """Return a copy of a tensor's view. Raises ValueError for a view that exceeds its storage."""
    offset, shape, strides = tensor.offset, tensor.shape, tensor.strides
    if min((offset, *shape, *strides)) < 0 or len(shape) != len(strides):
        raise ValueError(f"a tensor of shape {shape} with strides {strides}")
    last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
    if 0 not in shape and last >= len(numbers):
        raise ValueError(f"a tensor of shape {shape} exceeds its storage")
    if 0 in shape:
        return np.zeros(shape, numbers.dtype)
    limit.take(math.prod(shape) * numbers.itemsize)  # strides of 0 repeat numbers
    byte_strides = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, byte_strides).copy()


def _numbers(data: bytes, kind: str) -> np.ndarray:
    if kind == "bfloat16":
        return from_bfloat16(np.frombuffer(data, "<u2"))
    return np.frombuffer(data, kind)


def _size(kind: str) -> int:
    return 2 if kind == "bfloat16" else np.dtype(kind).itemsize
