"""Parts of error messages: the most similar name, a list of names, a value."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from ppdet_lite.config.yaml_nodes import flow

_LONGEST_VALUE = 60


def nearest(word: str, names: Iterable[str]) -> str | None:
    """Return the name most similar to the word, ignoring case, or None if no name is similar."""
    by_lower = {name.lower(): name for name in names}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=1)
    return by_lower[matches[0]] if matches else None


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return the end of a message, "; did you mean X?", or "" if no name is similar."""
    name = nearest(word, names)
    return f"; did you mean {name}?" if name else ""


def join_with_or(names: Iterable[str]) -> str:
    """Return the names as "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def format_value(value: Any) -> str:
    """Format a value for a message: '3' (text), [1, 2] (a list), 3, true, null."""
    if isinstance(value, str):
        return f"{value!r} (text)"
    text = flow(value)
    if len(text) > _LONGEST_VALUE:
        text = text[:_LONGEST_VALUE] + "..."
    if isinstance(value, dict):
        return f"{text} (a mapping)"
    return f"{text} (a list)" if isinstance(value, list) else text
