"""Conversion of values to type hints, strictly by pydantic, and readable messages for its errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from pydantic_core import ErrorDetails

from ppdet_lite.config.messages import did_you_mean, format_value, join_with_or

Location = tuple[str | int, ...]

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing_size": "a smaller number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "sequence_str": "a list",  # pydantic's error for text as a Sequence
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "none_required": "null",
    "missing": "more items",  # of a tuple
    "literal_error": "{expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "too_short": "at least {min_length} items",
    "too_long": "at most {max_length} items",
    "string_pattern_mismatch": "text like {pattern}",
    "string_too_short": "at least {min_length} characters",
    "string_too_long": "at most {max_length} characters",
}


def convert(hint: Any, value: Any) -> Any:
    """Convert a plain value to the type of the hint: a list for a Sequence, a tuple for a tuple, 1.0 for a float's 1.

    Any other conversion is rejected, such as text as a number or a bool as an integer. Raises pydantic.ValidationError.
    """
    try:
        adapter = TypeAdapter(hint)
    except PydanticSchemaGenerationError as error:
        raise TypeError(
            f"{hint} is neither a plain type nor a registered component; is its module imported?"
        ) from error
    # In JSON mode, strict validation accepts lists for tuples.
    return adapter.validate_json(json.dumps(value), strict=True)


def find_mistakes(hint: Any, value: Any) -> dict[Location, str]:
    """Return an error message per location in a plain value that does not match the hint; empty if it matches."""
    try:
        converted = convert(hint, value)
    except ValidationError as error:
        details = error.errors(include_url=False)
    else:
        if isinstance(value, bool) and not isinstance(converted, bool):  # pydantic accepts true for Literal[1]
            return {(): _message(hint, [join_with_or(str(choice) for choice in _literals(hint))], value)}
        return {}
    expected: dict[Location, list[str]] = {}
    for detail in details:
        alternatives = expected.setdefault(_location_in(value, detail["loc"]), [])
        if (text := _expected(detail)) not in alternatives:
            alternatives.append(text)
    # Every member of a union reports errors. The errors at the deepest locations belong to the intended member.
    deepest = [loc for loc in expected if not any(loc == other[: len(loc)] for other in expected if other != loc)]
    return {loc: _message(hint, expected[loc], _value_at(value, loc)) for loc in deepest}


def _message(hint: Any, expected: list[str], value: Any) -> str:
    message = f"expected {' or '.join(expected)}, got {format_value(value)}"
    if not isinstance(value, str):
        return message
    return message + did_you_mean(value, (choice for choice in _literals(hint) if isinstance(choice, str)))


def _expected(detail: ErrorDetails) -> str:
    if detail["type"] in _EXPECTED:
        bounds = {key: f"{x:g}" if isinstance(x, float) else x for key, x in detail.get("ctx", {}).items()}
        return _EXPECTED[detail["type"]].format(**bounds)
    if detail["type"] == "value_error":  # raised by the hint's own validator, whose message is what is expected
        return str(detail["ctx"]["error"])
    return f"a valid value ({detail['msg']})"


def _location_in(value: Any, loc: Location) -> Location:
    """Return the part of pydantic's location that exists in the value: without union member names and missing items."""
    location: Location = ()
    for part in loc:
        if isinstance(value, list):
            exists = isinstance(part, int) and part < len(value)
        else:
            exists = isinstance(value, dict) and part in value
        if exists:
            location, value = (*location, part), value[part]
    return location


def _value_at(value: Any, loc: Location) -> Any:
    for part in loc:
        value = value[part]
    return value


def _literals(hint: Any) -> Iterator[Any]:
    """Yield every choice of every Literal inside the hint."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
        return
    for argument in get_args(hint):
        yield from _literals(argument)
