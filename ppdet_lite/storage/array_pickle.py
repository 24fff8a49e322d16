"""Pickles that hold arrays, read without running what else they hold.

A pickle may name any function to be called. The reader here knows the few names that NumPy writes for arrays, answers
each with code of its own (NumPy's own rebuilding trusts its input), and refuses every other name.
"""

import pickle
from typing import Any

import numpy as np

NUMBER_KINDS = "biufc"  # of a NumPy type: bool, integer, unsigned, floating, complex


class Refused(Exception):
    """A name that is no array's."""


class _Dtype:
    """A number type: kind and item size from the constructor, byte order from the state."""

    def __init__(self, code: str | bytes) -> None:
        dtype = np.dtype(_text(code))
        if dtype.kind not in NUMBER_KINDS:
            raise ValueError(f"an array of type {dtype}, not of numbers")
        self.value = dtype

    def __setstate__(self, state: tuple) -> None:
        self.value = self.value.newbyteorder(_text(state[1]))


class _Array:
    """An array under construction: empty until the pickle supplies (version, shape, type, Fortran order, bytes)."""

    value: np.ndarray

    def __setstate__(self, state: tuple) -> None:
        shape, dtype, fortran, data = state[-4:]
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


class ArrayUnpickler(pickle.Unpickler):
    """Loads plain data and arrays only. Bound methods are handed out, as a pickle cannot alter those."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name in the pickle: ours if it is known, whatever `unknown` says otherwise."""
        numpy_module = module.replace("numpy._core", "numpy.core")  # NumPy 2 renamed it
        known = self.known()
        full_name = f"{numpy_module}.{name}".replace("__builtin__.", "builtins.")
        return known[full_name] if full_name in known else self.unknown(f"{module}.{name}")

    def known(self) -> dict[str, Any]:
        """What stands for each name that is admitted."""
        return {
            "numpy.core.multiarray._reconstruct": self._reconstruct,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._from_buffer,
            "numpy.dtype": self._dtype,
            "numpy.ndarray": "numpy.ndarray",  # only ever an argument of _reconstruct
            "collections.OrderedDict": dict,
            "_codecs.encode": self._encode,  # bytes in protocol 2
            "builtins.bytes": self._no_bytes,  # b"" in protocol 2
            "builtins.tuple": tuple,  # a tensor outside a state dict is saved as tuple((name, array))
        }

    def unknown(self, name: str) -> Any:
        """What stands for a name that is no array's; here that ends the reading."""
        raise Refused(name)

    def _reconstruct(self, _kind: str, _shape: tuple, _code: bytes) -> _Array:
        return _Array()

    def _scalar(self, dtype: _Dtype, data: bytes) -> np.ndarray:
        return _array(data, dtype, (), "C")

    def _from_buffer(self, data: bytes, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
        return _array(data, dtype, shape, order)

    def _dtype(self, code: str, _align: bool = False, _copy: bool = True) -> _Dtype:
        return _Dtype(code)

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise ValueError(f"bytes in the encoding {encoding}")
        return text.encode("latin1")

    def _no_bytes(self) -> bytes:
        return b""


def flatten(entries: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of nested dicts by dotted names. Raises ValueError for anything but numbers."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in entries.items():
        if isinstance(value, dict):
            arrays |= flatten(value, f"{prefix}{name}.")
        else:
            arrays[f"{prefix}{name}"] = number_array(f"{prefix}{name}", value)
    return arrays


def number_array(name: str, value: Any) -> np.ndarray:
    """An entry as an array; plain numbers become 0-d. Raises ValueError, with its name, for anything else."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        value = value[1]  # (Paddle's name, array)
    if isinstance(value, _Array):
        value = value.value
    array = np.asarray(value) if isinstance(value, np.ndarray | bool | int | float) else None
    if array is not None and array.dtype.kind in NUMBER_KINDS:
        return array
    raise ValueError(f"entry {name!r} is a {type(value).__name__}, not an array")


def _array(data: bytes | str, dtype: _Dtype, shape: tuple, order: str) -> np.ndarray:
    raw = data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote strings
    array = np.frombuffer(raw, dtype.value).reshape(shape, order=order)
    return array.astype(dtype.value.newbyteorder("="), order="C")  # also a copy that may be written to


def _text(code: str | bytes) -> str:
    return code.decode("latin1") if isinstance(code, bytes) else code


def one_line(error: Exception) -> str:
    """What an error says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
