"""Read and write Paddle's .pdparams pickles without running what they hold (see `array_pickle`)."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.array_pickle import ArrayUnpickler, Refused, flatten, number_array, one_line
from ppdet_lite.storage.files import output_file

NAME_TABLE = "StructuredToParameterName@@"  # structured name -> Paddle's internal name
CHUNKS = "UnpackBigParamInfor@@"  # protocols 2 and 3 cut arrays above 1 GiB into pieces "<name>@@.<i>"


def read_pdparams(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .pdparams or .pdopt file by name.

    Inner dicts become dotted names, plain numbers 0-d arrays; Paddle's name table is left out and its chunks are
    joined. Raises UserError when the file is missing, damaged, holds code or anything but numbers.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = ArrayUnpickler(file, encoding="latin1").load()
        arrays = flatten(_joined(content))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except Refused as error:
        raise UserError(f"{path}: holds code ({error}), refused; ask for a file with arrays only") from error
    except Exception as error:  # damaged bytes make an unpickler raise nearly anything
        raise UserError(f"{path}: damaged, or no Paddle weights file ({one_line(error)}); fetch it again") from error
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
        pieces = [number_array(piece, entries.pop(piece)) for piece in cut["slices"]]
        entries[name] = np.concatenate(pieces).reshape(cut["OriginShape"])
    return entries
