"""Merges the layers of a config: a file over its `_base_` files, and command-line overrides over both."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial, reduce
from pathlib import Path

from ppdet_lite.config.recipes import find_config, suggest_recipe
from ppdet_lite.config.yaml_nodes import Node, parse, plain
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger

BASE = "_base_"
COMMAND_LINE = "command line"
_OVERRIDE = re.compile(r"([^\s.=]+(?:\.[^\s.=]+)*)=(.*)", re.DOTALL)


def read_with_bases(path: str | Path) -> Node:
    """Read a file, or a recipe given by its name, and merge it over its bases.

    Bases are merged in the order given, each after its own bases. A base that several files share is merged once, at
    its first occurrence, so that two variants of one base keep the changes of both.
    """
    layers: dict[Path, Node] = {}
    _collect_layers(find_config(path), (), layers)
    *_, own = layers.values()
    return Node(reduce(merge, layers.values()).value, own.origin)


def apply_overrides(tree: Node, overrides: Sequence[str]) -> Node:
    """Return a tree with overrides such as "a.b.0.c=value" applied. Values are YAML; integers in a path index lists.

    The overrides form one layer, so their order matters only if two set the same key: the later one takes effect.
    """
    if not overrides:
        return tree
    # One override's `type` must not discard another override's arguments: each has to take effect or be rejected.
    layer = reduce(partial(merge, into_lists=True, discard_on_new_type=False), map(_override, overrides))
    return merge(tree, layer, into_lists=True)


def merge(base: Node, over: Node, path: str = "", into_lists: bool = False, discard_on_new_type: bool = True) -> Node:
    """Merge one layer over another: mappings merge key by key, any other value is replaced as a whole.

    path: where the nodes are, for messages.
    into_lists: a mapping over a list replaces single items; its keys are indices. Raises UserError for a missing item.
    discard_on_new_type: a component whose `type` changes loses the arguments of the base layer.
    """

    def merged(old: Node, new: Node, key: str) -> Node:
        return merge(old, new, f"{path}.{key}" if path else key, into_lists, discard_on_new_type)

    if not isinstance(over.value, dict):
        return over
    if isinstance(base.value, list) and into_lists:
        items = list(base.value)
        for key, child in over.value.items():
            index = _index(key, child, len(items), path)
            items[index] = merged(items[index], child, key)
        return Node(items, over.origin)
    if path and isinstance(base.value, dict) and base.value and not over.value:
        raise UserError(
            f"{over.origin}: {path}: {{}} changes nothing, since it is merged with the keys at {base.origin}; "
            "remove it, or override its keys"
        )
    if not isinstance(base.value, dict) or (discard_on_new_type and _type_changes(base, over)):
        if into_lists and isinstance(base.value, dict) and (lost := base.value.keys() - over.value.keys()):
            get_logger().info(
                "%s.type=%s replaces %s, whose settings no longer apply: %s",
                *(path, over.value["type"].value, base.value["type"].value, ", ".join(sorted(lost))),
            )
        return over
    children = dict(base.value)
    for key, child in over.value.items():
        children[key] = merged(children[key], child, key) if key in children else child
    return Node(children, base.origin)


def _type_changes(base: Node, over: Node) -> bool:
    return "type" in base.value and "type" in over.value and base.value["type"] != over.value["type"]


def _index(key: str, node: Node, length: int, path: str) -> int:
    if key.isdecimal() and int(key) < length:
        return int(key)
    items = f"items 0 to {length - 1}" if length else "no items"
    raise UserError(f"{node.origin}: {path}.{key}: {path} is a list with {items}")


def _override(text: str) -> Node:
    match = _OVERRIDE.fullmatch(text)
    if match is None:
        raise UserError(f"{COMMAND_LINE}: {text!r} is not of the form a.b.c=value")
    path, value = match.groups()
    if not value.strip():
        raise UserError(f"{COMMAND_LINE}: {text!r} has no value; write {path}=null, or {path}='\"\"' for empty text")
    try:
        node = parse(value, lambda line: COMMAND_LINE)
    except UserError as error:
        raise UserError(f"{error}, in {text!r}") from None
    for part in reversed(path.split(".")):
        node = Node({part: node}, COMMAND_LINE)
    return node


def _collect_layers(path: Path, chain: tuple[Path, ...], layers: dict[Path, Node], referrer: str = "") -> None:
    """Add a file's layer after those of its bases. `referrer` begins messages: the place that names the file."""
    key = path.resolve()
    if key in layers:
        return
    if key in chain:
        names = " -> ".join(_display(file) for file in (*chain[chain.index(key) :], key))
        raise UserError(f"{referrer}circular base files: {names}")
    node = _read_file(path, referrer)
    bases = node.value.get(BASE)
    if bases is not None:
        for base in _base_paths(bases):
            _collect_layers(find_config(base, path.parent), (*chain, key), layers, f"{bases.origin}: {BASE}: ")
    layers[key] = Node({name: child for name, child in node.value.items() if name != BASE}, node.origin)


def _base_paths(node: Node) -> list[str]:
    value = plain(node)
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) and path for path in paths):
        raise UserError(f"{node.origin}: {BASE}: expected a path or a list of paths")
    return paths


def _read_file(path: Path, referrer: str) -> Node:
    name = _display(path)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{referrer}{name}: no such file{suggest_recipe(path)}") from None
    except UnicodeDecodeError:
        raise UserError(f"{referrer}{name}: is not UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{referrer}{name}: cannot be read: {error.strerror}") from None
    node = parse(content, lambda line: f"{name}:{line}")
    if node.value is None:
        raise UserError(f"{name}:1: the file is empty")
    if not isinstance(node.value, dict):
        raise UserError(f"{node.origin}: expected a mapping (key: value) at the top of the file")
    return node


def _display(path: Path) -> str:
    """Return a path for messages, relative to the working directory if it is below it."""
    full = Path(os.path.abspath(path))
    try:
        return full.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return full.as_posix()
