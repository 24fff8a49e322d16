"""The checked config: a read-only mapping that knows the class of each component and the origin of each value."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from ppdet_lite.config.yaml_nodes import Node, flow


class Config(Mapping[str, Any]):
    """A read-only nested mapping, as `ppdet_lite.config.check` makes it.

    Values are scalars, lists and Configs. `component` is the class that `build` makes of this mapping, or None where
    the mapping is a plain value; `place` says where it stands, as messages do: "configs/x.yml:12: model.neck".
    """

    def __init__(self, nodes: Mapping[str, Node], origin: str, path: str = "", component: type | None = None) -> None:
        """`nodes` hold a scalar, a list or a Config each; lists hold bare values."""
        self._nodes = dict(nodes)
        self._origin, self._path = origin, path
        self.component = component
        self.place = f"{origin}: {path}" if path else origin

    def __getitem__(self, key: str) -> Any:
        return copy.deepcopy(self._nodes[key].value)  # a caller may change his list; a Config copies to itself

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Config:
        return self

    def __repr__(self) -> str:
        return f"Config({to_plain(self)})"

    def origin(self, path: str) -> str:
        """Where the value at a dotted path was written: "configs/x.yml:12", "command line" or "default of FPN".

        An item of a list of plain values has the origin of the list. Raises KeyError for an unknown path.
        """
        value, origin = self, self._origin
        for part in path.split("."):
            if isinstance(value, Config) and part in value._nodes:
                value, origin = value._nodes[part].value, value._nodes[part].origin
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
                origin = value._origin if isinstance(value, Config) else origin
            else:
                raise KeyError(path)
        return origin

    def place_of(self, key: str) -> str:
        """Where the value of a key was written and what it is, as messages begin: "command line: data.train.images"."""
        return f"{self.origin(key)}: {self._path}.{key}" if self._path else f"{self.origin(key)}: {key}"

    def dump(self, origins: bool = False) -> str:
        """The config as YAML that loads again to an equal Config, on request with each line's origin as a comment."""
        lines = list(self._lines())
        if not lines:
            return "{}\n"
        width = max(len(text) for text, _ in lines)
        return "".join(f"{text:<{width}}  # {origin}\n" if origins else f"{text}\n" for text, origin in lines)

    def _lines(self) -> Iterator[tuple[str, str]]:
        for key, node in self._nodes.items():
            if isinstance(node.value, Config) and node.value:
                yield f"{flow(key)}:", node.origin
                yield from _indented(node.value)
            elif isinstance(node.value, list) and any(isinstance(item, Config) for item in node.value):
                yield f"{flow(key)}:", node.origin
                for item in node.value:
                    yield from _item_lines(item, node.origin)
            else:
                yield f"{flow(key)}: {flow(to_plain(node.value))}", node.origin


def to_plain(value: Any) -> Any:
    """A value of a Config as ordinary dicts, lists and scalars."""
    if isinstance(value, Config):
        return {key: to_plain(node.value) for key, node in value._nodes.items()}
    return [to_plain(item) for item in value] if isinstance(value, list) else value


def _indented(config: Config) -> Iterator[tuple[str, str]]:
    return ((f"  {text}", origin) for text, origin in config._lines())


def _item_lines(item: Any, origin: str) -> Iterator[tuple[str, str]]:
    """The lines of a list's item, the first of them behind the dash; `origin` is the list's."""
    if not isinstance(item, Config) or not item:
        yield f"- {flow(to_plain(item))}", origin
        return
    for number, (text, line_origin) in enumerate(_indented(item)):
        yield (f"-{text[1:]}" if number == 0 else text), line_origin
