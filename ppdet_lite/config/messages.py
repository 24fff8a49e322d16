"""The small words of error messages: the nearest name, a list of names, a value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from ppdet_lite.config.yaml_nodes import flow

_LONGEST_VALUE = 60


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name most like the word, whatever the case; None if none is near."""
    by_lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a message, "; did you mean X?", or nothing if no name is near."""
    name = nearest(word, names)
    return f"; did you mean {name}?" if name else ""


def either(names: Iterable[str]) -> str:
    """Names as "a, b or c"."""
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def shown(value: Any) -> str:
    """A value as a message shows it: '3' (text), [1, 2] (a list), 3, true, null."""
    if isinstance(value, str):
        return f"{value!r} (text)"
    text = flow(value)
    if len(text) > _LONGEST_VALUE:
        text = text[:_LONGEST_VALUE] + "..."
    if isinstance(value, dict):
        return f"{text} (a mapping)"
    return f"{text} (a list)" if isinstance(value, list) else text
