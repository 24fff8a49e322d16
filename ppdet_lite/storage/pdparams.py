"""Reads and writes Paddle's .pdparams pickles. Reading executes nothing (see `array_pickle`)."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.array_pickle import ArrayUnpickler, DisallowedName, flatten, number_array, one_line
from ppdet_lite.storage.content_limit import ContentLimit
from ppdet_lite.storage.files import output_file
from ppdet_lite.storage.state_dicts import from_bfloat16, select_weights

NAME_TABLE = "StructuredToParameterName@@"  # structured name -> Paddle's internal name
CHUNKS = "UnpackBigParamInfor@@"  # protocols 2 and 3 split arrays above 1 GiB into "<name>@@.<i>"


def read_pdparams(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .pdparams or .pdopt file by name.

    Nested dicts become dotted names, and plain numbers 0-d arrays. If a trainer saved other states beside the weights,
    only the weights are read. Paddle's name table is omitted, its chunks are joined, and its uint16 arrays, which hold
    bfloat16 numbers, become float32.
    Raises UserError if the file is missing, damaged, contains code or anything else but numbers, or is small and would
    become huge.
    """
    path = Path(path)
    try:
        limit = ContentLimit(path)
        with path.open("rb") as file:
            content = ArrayUnpickler(file, limit, encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} instead of a dict of arrays")
        arrays = flatten(_joined(select_weights(content, str(path))), limit)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except DisallowedName as error:
        raise UserError(f"{path}: refused, it contains code ({error}); use a file with arrays only") from error
    except Exception as error:  # damaged bytes make an unpickler raise nearly anything
        raise UserError(
            f"{path}: damaged, or not a Paddle weights file ({one_line(error)}); download it again"
        ) from error
    return {name: from_bfloat16(array) if array.dtype == np.uint16 else array for name, array in arrays.items()}


def write_pdparams(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays by name, atomically, in the format of `paddle.load`. Raises UserError if that fails."""
    with output_file(path) as file:
        pickle.dump({**arrays, NAME_TABLE: {}}, file, protocol=4)


def _joined(content: dict[str, Any]) -> dict[str, Any]:
    """Return the entries of a file without the name table, with arrays joined that were saved in chunks."""
    entries = {name: value for name, value in content.items() if name not in (NAME_TABLE, CHUNKS)}
    for name, split in content.get(CHUNKS, {}).items():
        pieces = [number_array(piece, entries.pop(piece)) for piece in split["slices"]]
        entries[name] = np.concatenate(pieces).reshape(split["OriginShape"])
    return entries
