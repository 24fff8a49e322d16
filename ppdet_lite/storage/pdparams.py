"""Read and write Paddle's .pdparams pickles without running what they hold.

A pickle may name any function to be called. The reader here knows the few names that Paddle and NumPy write for
arrays, answers each with code of its own (NumPy's own rebuilding trusts its input), and refuses every other name.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.files import output_file

NAME_TABLE = "StructuredToParameterName@@"  # structured name -> Paddle's internal name
CHUNKS = "UnpackBigParamInfor@@"  # protocols 2 and 3 cut arrays above 1 GiB into pieces "<name>@@.<i>"
NUMBER_KINDS = "biufc"  # of a NumPy type: bool, integer, unsigned, floating, complex


class _Refused(Exception):
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


class _ArrayUnpickler(pickle.Unpickler):
    """Loads plain data and arrays only. Bound methods are handed out, as a pickle cannot alter those."""

    def find_class(self, module: str, name: str) -> Any:
        numpy_module = module.replace("numpy._core", "numpy.core")  # NumPy 2 renamed it
        known = {
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
        full_name = f"{numpy_module}.{name}".replace("__builtin__.", "builtins.")
        if full_name not in known:
            raise _Refused(f"{module}.{name}")
        return known[full_name]

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


def read_pdparams(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .pdparams or .pdopt file by name.

    Inner dicts become dotted names, plain numbers 0-d arrays; Paddle's name table is left out and its chunks are
    joined. Raises UserError when the file is missing, damaged, holds code or anything but numbers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
        arrays = _flatten(_joined(content))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except _Refused as error:
        raise UserError(f"{path}: holds code ({error}), refused; ask for a file with arrays only") from error
    except Exception as error:  # damaged bytes make an unpickler raise nearly anything
        raise UserError(f"{path}: damaged, or no Paddle weights file ({_one_line(error)}); fetch it again") from error
    return arrays


def write_pdparams(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name as `paddle.load` reads them; the file appears complete or not at all.

    Raises UserError when the folder cannot be written.
    """
    with output_file(path) as file:
        pickle.dump({**arrays, NAME_TABLE: {}}, file, protocol=4)


def _joined(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not a dict of arrays")
    entries = {name: value for name, value in content.items() if name not in (NAME_TABLE, CHUNKS)}
    for name, cut in content.get(CHUNKS, {}).items():
        pieces = [_number_array(piece, entries.pop(piece)) for piece in cut["slices"]]
        entries[name] = np.concatenate(pieces).reshape(cut["OriginShape"])
    return entries


def _flatten(entries: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, value in entries.items():
        if isinstance(value, dict):
            arrays |= _flatten(value, f"{prefix}{name}.")
        else:
            arrays[f"{prefix}{name}"] = _number_array(f"{prefix}{name}", value)
    return arrays


def _number_array(name: str, value: Any) -> np.ndarray:
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


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
