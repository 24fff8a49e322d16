"""Reads pickles of arrays without executing anything they contain.

A pickle can name any function to call. The unpickler here accepts the few names that NumPy uses for arrays, replaces
each with its own code (NumPy's own functions trust their input), and refuses every other name. A `ContentLimit`
counts what the content takes in memory.
"""

import pickle
from collections.abc import Collection
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

from ppdet_lite.storage.content_limit import ContentLimit

NUMBER_KINDS = "biufc"  # NumPy dtype kinds: bool, integer, unsigned, floating, complex
ARRAY_OVERHEAD = 256  # bytes of an array's object and its name


class DisallowedName(Exception):
    """A pickle names a function or class that is not part of an array."""


class _Dtype:
    """A numeric dtype: kind and item size come from the constructor, the byte order from the state."""

    def __init__(self, code: str | bytes) -> None:
        dtype = np.dtype(_text(code))
        if dtype.kind not in NUMBER_KINDS:
            raise ValueError(f"an array of type {dtype} instead of numbers")
        self.value = dtype

    def __setstate__(self, state: tuple) -> None:
        order: Any = _text(state[1])
        self.value = self.value.newbyteorder(order)


class _Array:
    """An array without content until the pickle sets its state: (version, shape, dtype, Fortran order, bytes)."""

    value: np.ndarray

    def __init__(self, limit: ContentLimit) -> None:
        self._limit = limit

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.value = _array(data, dtype, shape, "F" if fortran else "C", self._limit)


class ArrayUnpickler(pickle._Unpickler):
    """Loads plain data and arrays only. Names resolve to bound methods, which a pickle cannot modify.

    Derives from the unpickler in Python: that in C allocates 64 GiB for the ten bytes that give an object the number
    2**32 - 1. It costs 10 ms more for 400 arrays.
    """

    dispatch: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch.copy()

    def __init__(self, file: BinaryIO, limit: ContentLimit, encoding: str = "ASCII") -> None:
        super().__init__(file, encoding=encoding)
        self._limit = limit

    def load_bytearray8(self) -> None:
        """Load a bytearray. The base class would allocate its length, whatever the length of the file."""
        length = int.from_bytes(self.read(8), "little")  # type: ignore[attr-defined]
        self.append(bytearray(self.read(length)))  # type: ignore[attr-defined]

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a name in the pickle: one of `allowed_names`, else the result of `disallowed`."""
        numpy_module = module.replace("numpy._core", "numpy.core")  # NumPy 2 renamed it
        allowed = self.allowed_names()
        full_name = f"{numpy_module}.{name}".replace("__builtin__.", "builtins.")
        return allowed[full_name] if full_name in allowed else self.disallowed(f"{module}.{name}")

    def allowed_names(self) -> dict[str, Any]:
        """Return each allowed name with its replacement."""
        return {
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._from_buffer,
            "numpy.dtype": self._dtype,
            "numpy.ndarray": "numpy.ndarray",  # only an argument of _reconstruct
            "collections.OrderedDict": self._dict,
            "_codecs.encode": self._encode,  # bytes in protocol 2
            "builtins.bytes": self._empty_bytes,  # b"" in protocol 2
            "builtins.tuple": self._tuple,  # a tensor outside a state dict is saved as tuple((name, array))
        }

    def disallowed(self, name: str) -> Any:
        """Return the replacement of any other name. Here: raise DisallowedName."""
        raise DisallowedName(name)

    def _reconstruct(self, _kind: str, _shape: tuple, _code: bytes) -> _Array:
        return _Array(self._limit)

    def _scalar(self, dtype: _Dtype, data: bytes) -> np.ndarray:
        return _array(data, dtype, (), "C", self._limit)

    def _from_buffer(self, data: bytes, dtype: _Dtype, shape: tuple, order: Literal["C", "F"]) -> np.ndarray:
        return _array(data, dtype, shape, order, self._limit)

    def _dtype(self, code: str, _align: bool = False, _copy: bool = True) -> _Dtype:
        return _Dtype(code)

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes in the encoding {encoding}")
        self._limit.take(len(text))
        return text.encode("latin1")

    def _empty_bytes(self) -> bytes:
        return b""

    def _tuple(self, values: Collection = ()) -> tuple:
        self._limit.take_entries(len(values))
        return tuple(values)

    def _dict(self, items: Collection = ()) -> dict:
        self._limit.take_entries(len(items))
        return dict(items)


def flatten(entries: dict[str, Any], limit: ContentLimit, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the arrays of nested dicts by dotted names. Raises ValueError for an entry that is not numeric."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in entries.items():
        if isinstance(value, dict):
            arrays |= flatten(value, limit, f"{prefix}{name}.")
        else:
            array = number_array(f"{prefix}{name}", value)
            limit.take(array.nbytes + ARRAY_OVERHEAD)  # also for another name of the same array
            arrays[f"{prefix}{name}"] = array
    return arrays


def number_array(name: str, value: Any) -> np.ndarray:
    """Convert an entry to an array, 0-d for a plain number. Raises ValueError with its name for any other type."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]  # (Paddle's name, array)
    if isinstance(value, _Array):
        value = value.value
    array = np.asarray(value) if isinstance(value, np.ndarray | bool | int | float) else None
    if array is not None and array.dtype.kind in NUMBER_KINDS:
        return array
    raise ValueError(f"entry {name!r} is a {type(value).__name__}, not an array")


def _array(data: bytes | str, dtype: _Dtype, shape: tuple, order: Literal["C", "F"], limit: ContentLimit) -> np.ndarray:
    limit.take(len(data))
    raw = data.encode("latin1") if isinstance(data, str) else data  # written by Python 2
    array = np.frombuffer(raw, dtype.value).reshape(shape, order=order)
    return array.astype(dtype.value.newbyteorder("="), order="C")  # a writable copy


def _text(code: str | bytes) -> str:
    return code.decode("latin1") if isinstance(code, bytes) else code


def one_line(error: Exception) -> str:
    """Return the message of an error on one line, or its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
