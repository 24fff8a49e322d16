"""References between values of a config: ${a.b.c} is replaced by the value at that path."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from ppdet_lite.config.messages import nearest
from ppdet_lite.config.yaml_nodes import MAX_VALUES, Node, flow
from ppdet_lite.core.errors import UserError

_REFERENCE = re.compile(r"\$\{([^${}]+)\}")


def resolve(tree: Node) -> Node:
    """Return the tree with every reference replaced.

    A value that consists of one reference becomes the target's value, with its type; mappings and lists are allowed.
    Inside other text, the target is inserted as text. Raises UserError for an unknown target and circular references.
    """
    return _Resolver(tree, itertools.count(1)).value(tree, "", ())


@dataclass(frozen=True)
class _Resolver:
    """Resolves references. `active` is the chain of references being resolved; one that occurs twice is circular.

    numbers: counts the values of the tree, with a copy of the target for each reference.
    """

    root: Node
    numbers: Iterator[int]

    def value(self, node: Node, path: str, active: tuple[str, ...]) -> Node:
        def below(key: str | int) -> str:
            return f"{path}.{key}" if path else str(key)

        if next(self.numbers) > MAX_VALUES:
            raise UserError(
                f"{node.origin}: {path}: more than {MAX_VALUES} values, counting those behind ${{references}}"
            )
        if isinstance(node.value, dict):
            children = {key: self.value(child, below(key), active) for key, child in node.value.items()}
            return Node(children, node.origin)
        if isinstance(node.value, list):
            return Node([self.value(c, below(i), active) for i, c in enumerate(node.value)], node.origin)
        if isinstance(node.value, str) and "${" in node.value:
            return self.text(node, f"{node.origin}: {path}", active)
        return node

    def text(self, node: Node, location: str, active: tuple[str, ...]) -> Node:
        whole = _REFERENCE.fullmatch(node.value)
        if whole:
            return Node(self.target(whole[1], location, active).value, node.origin)
        if "${" in _REFERENCE.sub("", node.value):
            raise UserError(f"{location}: {node.value!r}: write a reference as ${{a.b.c}}")

        def replacement(match: re.Match[str]) -> str:
            value = self.target(match[1], location, active).value
            if isinstance(value, (dict, list)):
                kind = "mapping" if isinstance(value, dict) else "list"
                raise UserError(f"{location}: {match[0]} is a {kind} and cannot be inserted into text")
            return value if isinstance(value, str) else flow(value)

        return Node(_REFERENCE.sub(replacement, node.value), node.origin)

    def target(self, path: str, location: str, active: tuple[str, ...]) -> Node:
        """Return the resolved value at `path`. `location`, of the reference, begins messages."""
        if path in active:
            circle = " -> ".join(f"${{{name}}}" for name in (*active[active.index(path) :], path))
            raise UserError(f"{location}: circular references: {circle}")
        active = (*active, path)
        node, parts = self.root, path.split(".")
        for depth, part in enumerate(parts):
            children = _children(node)
            if part not in children:
                near = nearest(part, children)
                guess = ".".join([*parts[:depth], near, *parts[depth + 1 :]]) if near else ""
                hint = f"; did you mean ${{{guess}}}?" if near else "; set it: a default cannot be referenced"
                raise UserError(f"{location}: ${{{path}}} is not set{hint}")
            node, at = children[part], ".".join(parts[: depth + 1])
            if depth < len(parts) - 1 and isinstance(node.value, str):  # the path leads through another reference
                node = self.value(node, at, active)
        return self.value(node, path, active)


def _children(node: Node) -> dict[str, Node]:
    if isinstance(node.value, list):
        return {str(index): child for index, child in enumerate(node.value)}
    return node.value if isinstance(node.value, dict) else {}
