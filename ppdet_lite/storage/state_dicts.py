"""State dicts as other programs save them: removal of wrappers, choice among averaged weights, and float types."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger

STATES = ("state_dict", "model", "model_state_dict", "blobs")  # keys under which trainers save the weights
AVERAGED = re.compile(r"(?:.*_)?(?:ema|swa)(?:_.*)?")  # keys, and beginnings of names, of averaged weights

Arrays = dict[str, np.ndarray]


def select_weights(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the weights in the content of a file: one of the dicts that its trainer saved, or the content itself.

    If it has averaged weights too, the log reports which weights are used, and the others are left out.
    """
    averaged = [key for key, value in content.items() if AVERAGED.fullmatch(str(key)) and isinstance(value, dict)]
    key = next((key for key in STATES if isinstance(content.get(key), dict)), None)
    if key is None and averaged and not any("." in str(name) for name in content):
        key = averaged.pop(0)
        get_logger().warning("%s: the weights in %r are used, which are averaged", source, key)
    state = content if key is None else content[key]
    copies = {f"ema_{str(name).replace('.', '_')}" for name in state}  # mmcv: ema_conv_weight beside conv.weight
    unused = {*averaged, *copies.intersection(state)}
    if unused:
        used = "those at its top level" if key is None else f"those in {key!r}"
        others = [*averaged, *(["ema_*"] if len(unused) > len(averaged) else [])]
        message = "%s has both plain and averaged weights: %s are used, %s are not"
        get_logger().warning(message, source, used, " and ".join(others))
    return {name: value for name, value in state.items() if name not in unused}


def without_wrapper(arrays: Arrays, source: str, fits: Callable[[Arrays], bool]) -> Arrays:
    """Return the arrays without a prefix of all their names, such as "module.", if they fit only then."""
    for prefix, candidate in prefix_candidates(arrays):
        if fits(candidate):
            log_prefix(prefix, source)
            return candidate
    return arrays


def prefix_candidates(arrays: Arrays) -> Iterator[tuple[str, Arrays]]:
    """Yield ("", arrays), then (prefix, arrays without it) for each part of a dotted prefix that all names share.

    The counter beside the names, such as `n_averaged` of torch's AveragedModel, is dropped with the prefix.
    """
    prefix = ""
    yield prefix, arrays
    names = [name for name, array in arrays.items() if "." in name or array.ndim > 0]
    while len(names) > 1 and len({name[len(prefix) :].partition(".")[0] for name in names}) == 1:
        first, dot, _ = names[0][len(prefix) :].partition(".")
        prefix = f"{prefix}{first}{dot}"
        if not dot or not all(name.startswith(prefix) for name in names):
            return
        yield prefix, {name[len(prefix) :]: arrays[name] for name in names}


def log_prefix(prefix: str, source: str) -> None:
    """Log a prefix that was removed from the names of arrays; do nothing for an empty one."""
    if prefix:
        get_logger().info("%s: the prefix %r is removed from all names", source, prefix)


def float32_arrays(arrays: Arrays, source: str) -> Arrays:
    """Return the arrays with floating-point numbers of any precision as float32.

    Raises UserError, with the name of the first such array, for numbers that are not finite as float32.
    """
    converted = {}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                array = array.astype(np.float32, copy=False)
            if not np.isfinite(array).all():
                count = array.size - int(np.isfinite(array).sum())
                raise UserError(
                    f"{source}: {name} has {count} values that are not finite (NaN or infinite); use other weights"
                )
        converted[name] = array
    return converted


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Convert uint16 arrays with the bits of bfloat16 numbers, the upper half of a float32, to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
