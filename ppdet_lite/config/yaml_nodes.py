"""Parses YAML text into a tree with the origin of each value, and writes values as YAML text.

Scalars follow the core schema of YAML 1.2 instead of PyYAML's 1.1: 1e-3 is a float, only true and false are booleans
(`off` and `no` are text), dates and 1:30 are text. Both directions use these rules, so written values read back equal.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from ppdet_lite.core.errors import UserError

MAX_VALUES = 100_000  # in a config; aliases and references could multiply a few lines into billions


@dataclass(frozen=True)
class Node:
    """A value of the tree and its origin, such as "configs/x.yml:12".

    `value` is a scalar (None, bool, int, float, str), a list of nodes or a dict from text to nodes.
    Comparison ignores the origin.
    """

    value: Any
    origin: str = field(compare=False)


def plain(node: Node) -> Any:
    """Convert a node to dicts, lists and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


def parse(text: str, origin: Callable[[int], str]) -> Node:
    """Parse one YAML document into a tree. `origin(line)` returns the origin for a line number, counted from 1.

    The value of an empty document is None. Raises UserError, prefixed with the origin, for invalid or unsupported YAML,
    and for more than MAX_VALUES values.
    """
    try:
        root = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "; quote '${...}' inside [] and {}" if "${" in text and "flow" in (error.context or "") else ""
        raise UserError(f"{origin(mark.line + 1)}: not valid YAML: {error.problem}{hint}") from None
    except RecursionError:
        raise UserError(f"{origin(1)}: values are nested too deeply") from None
    except yaml.reader.ReaderError as error:
        raise UserError(f"{origin(1)}: not valid YAML: {error.reason} at position {error.position}") from None
    return Node(None, origin(1)) if root is None else _node(root, origin, _line(root), (), itertools.count(1))


def flow(value: Any) -> str:
    """Format a value as YAML on one line (flow style), valid as a mapping's value or key and inside brackets."""
    text = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=sys.maxsize
    )
    return text.rstrip("\n")[1:-1]


def _integer(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(text: str) -> float:
    return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))


_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", lambda text: {"true": True, "false": False}[text.lower()]),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", _integer),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        _float,
    ),
}
# PyYAML tries the resolvers under None on every plain scalar.
_RESOLVERS = {None: [(_TAG + name, re.compile(rf"(?:{pattern})\Z")) for name, (pattern, _) in _SCALARS.items()]}
_CONSTRUCTORS = {_TAG + name: construct for name, (_, construct) in _SCALARS.items()} | {_TAG + "str": str}
_CONTAINER_TAGS = (_TAG + "map", _TAG + "seq")


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None if text.splitlines() == [text] else '"'  # PyYAML would spread line breaks over several lines
    return dumper.represent_scalar(_TAG + "str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _node(
    node: yaml.Node, origin: Callable[[int], str], line: int, parents: tuple[yaml.Node, ...], numbers: Iterator[int]
) -> Node:
    """Convert a YAML node to a tree. `line` is the line of its origin, for a mapping's value the line of its key.

    numbers: counts the values of the document, with a copy of the target for each alias.
    """
    here = origin(line)
    if next(numbers) > MAX_VALUES:
        raise UserError(f"{here}: more than {MAX_VALUES} values, counting a copy for each alias (*name)")
    if any(node is parent for parent in parents):
        raise UserError(f"{here}: an alias (*name) refers to a value that contains it")
    if isinstance(node, yaml.ScalarNode):
        return Node(_scalar(node, here), here)
    if node.tag not in _CONTAINER_TAGS:
        raise UserError(f"{here}: the tag {node.tag} is not supported")
    parents = (*parents, node)
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(item, origin, _line(item), parents, numbers) for item in node.value], here)
    children: dict[str, Node] = {}
    lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        key, key_line = _key(key_node, origin), _line(key_node)
        if key in children:
            raise UserError(f"{origin(key_line)}: duplicate key {key!r}, already in line {lines[key]}")
        children[key], lines[key] = _node(value_node, origin, key_line, parents, numbers), key_line
    return Node(children, here)


def _key(node: yaml.Node, origin: Callable[[int], str]) -> str:
    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{origin(_line(node))}: a key must be text, not a list or a mapping")
    if node.value == "<<":
        raise UserError(f"{origin(_line(node))}: merge keys (<<) are not supported; use _base_ or ${{...}}")
    return node.value


def _scalar(node: yaml.ScalarNode, here: str) -> Any:
    if node.tag not in _CONSTRUCTORS:
        raise UserError(f"{here}: the tag {node.tag} is not supported")
    try:
        return _CONSTRUCTORS[node.tag](node.value)
    except (ValueError, KeyError):
        raise UserError(f"{here}: {node.value!r} is not a valid {node.tag.removeprefix(_TAG)}") from None
