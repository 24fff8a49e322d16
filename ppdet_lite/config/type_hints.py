"""Values against type hints: strict conversion by pydantic, and its complaints in a person's words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import ErrorDetails

from ppdet_lite.config.messages import did_you_mean, either, shown

Location = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "sequence_str": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "none_required": "null",
    "missing": "more items",  # of a tuple
    "literal_error": "{expected}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "finite_number": "a finite number",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_pattern_mismatch": "text like {pattern}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
}


def convert(hint: Any, value: Any) -> Any:
    """The plain value as the hint asks for it: a list for a Sequence, a tuple for a tuple, 1.0 for a float's 1.

    Strict in all else: no text as a number, no bool as an integer. Raises pydantic.ValidationError.
    """
    try:
        adapter = TypeAdapter(hint)
    except PydanticSchemaGenerationError as error:
        raise TypeError(
            f"{hint} is neither a plain type nor a registered component; is its module imported?"
        ) from error
    # In JSON mode strictness knows that a file has no tuples, only lists.
    return adapter.validate_json(json.dumps(value), strict=True)


def mistakes(hint: Any, value: Any) -> dict[Location, str]:
    """What keeps a plain value from fitting the hint, one message for each place in it; empty if it fits."""
    try:
        converted = convert(hint, value)
    except ValidationError as error:
        details = error.errors(include_url=False)
    else:
        if isinstance(value, bool) and not isinstance(converted, bool):  # pydantic takes true for Literal[1]
            return {(): _message(hint, [either(str(choice) for choice in _literals(hint))], value)}
        return {}
    expected: dict[Location, list[str]] = {}
    for detail in details:
        words = expected.setdefault(_place(detail["loc"], value), [])
        words.extend([_expected(detail)] if _expected(detail) not in words else [])
    # Every member of a union complains; the one that got deepest is the one that was meant.
    deepest = [loc for loc in expected if not any(loc == other[: len(loc)] for other in expected if other != loc)]
    return {loc: _message(hint, expected[loc], _at(value, loc)) for loc in deepest}


def _message(hint: Any, expected: list[str], value: Any) -> str:
    message = f"expected {' or '.join(expected)}, got {shown(value)}"
    if not isinstance(value, str):
        return message
    return message + did_you_mean(value, (choice for choice in _literals(hint) if isinstance(choice, str)))


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] in _EXPECTED:
        return _EXPECTED[detail["type"]].format(**detail.get("ctx", {}))
    if detail["type"] == "value_error":  # the hint's own validator: its message says what it wants
        return str(detail["ctx"]["error"])
    return f"a valid value ({detail['msg']})"


def _place(loc: Location, value: Any) -> Location:
    """The part of pydantic's location that leads into the value: without names of union members and missing items."""
    place: Location = ()
    for part in loc:
        if (isinstance(value, dict) and part in value) or (
            isinstance(value, list) and isinstance(part, int) and part < len(value)
        ):
            place, value = (*place, part), value[part]
    return place


def _at(value: Any, loc: Location) -> Any:
    for part in loc:
        value = value[part]
    return value


def _literals(hint: Any) -> Iterator[Any]:
    """Every choice of every Literal inside the hint."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
        return
    for argument in get_args(hint):
        yield from _literals(argument)
