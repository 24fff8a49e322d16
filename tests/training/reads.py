"""Counting what a GPU would be waited for: values that Python asks for, and operators with results of unknown size."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import paddle
import pytest

from ppdet_lite.ops import nms

OF_TENSORS = ("numpy", "item", "tolist", "__array__", "__bool__", "__int__", "__float__", "__index__", "__getitem__")
OF_BOTH = ("nonzero", "masked_select", "unique", "unique_consecutive")


@contextlib.contextmanager
def counted(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """What is read inside the block, by name; a read that another one makes is part of that."""
    found: Counter[str] = Counter()
    depth = 0

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal depth
            found[name] += depth == 0 and (name != "__getitem__" or _reads(arguments[1]))
            depth += 1
            try:
                return function(*arguments, **options)
            finally:
                depth -= 1

        return call

    places = [(paddle.Tensor, name) for name in OF_TENSORS + OF_BOTH] + [(paddle, name) for name in OF_BOTH]
    with patch.context() as inside:
        for owner, name in [*places, (nms, "nms")]:
            inside.setattr(owner, name, wrapped(name, getattr(owner, name)))
        yield found


def _reads(index: Any) -> bool:
    """Whether indexing reads: by a mask, or between places that are tensors."""
    parts = index if isinstance(index, tuple) else (index,)
    bounds = [bound for part in parts if isinstance(part, slice) for bound in (part.start, part.stop, part.step)]
    masks = [part for part in parts if isinstance(part, paddle.Tensor) and part.dtype == paddle.bool]
    return bool(masks) or any(isinstance(bound, paddle.Tensor) for bound in bounds)
