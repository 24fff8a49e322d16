"""The checked config: a read-only mapping with the class of each component and the origin of each value."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from ppdet_lite.config.yaml_nodes import Node, flow


class Config(Mapping[str, Any]):
    """A read-only nested mapping, returned by `ppdet_lite.config.check`.

    Values are scalars, lists and Configs. `component` is the class that `build` instantiates from this mapping, or
    None for a plain mapping. `location` begins error messages about it: "configs/x.yml:12: model.neck".
    """

    def __init__(self, nodes: Mapping[str, Node], origin: str, path: str = "", component: type | None = None) -> None:
        """The value of each node is a scalar, a Config, or a list of plain values or Configs."""
        self._nodes = dict(nodes)
        self._origin, self._path = origin, path
        self.component = component
        self.location = f"{origin}: {path}" if path else origin

    def __getitem__(self, key: str) -> Any:
        return copy.deepcopy(self._nodes[key].value)  # callers may modify lists; a Config's copy is the Config itself

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __deepcopy__(self, memo: dict[int, Any]) -> Config:
        return self

    def __repr__(self) -> str:
        return f"Config({to_plain(self)})"

    def origin(self, path: str) -> str:
        """Return where the value at a dotted path was set: "configs/x.yml:12", "command line" or "default of FPN".

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

    def location_of(self, key: str) -> str:
        """Return origin and dotted path of a key, to begin an error message: "command line: data.train.images"."""
        return f"{self.origin(key)}: {self._path}.{key}" if self._path else f"{self.origin(key)}: {key}"

    def dump(self, origins: bool = False) -> str:
        """Return the config as YAML that loads to an equal Config; `origins` adds each line's origin as a comment."""
        lines = list(self._lines())
        if not lines:
            return "{}\n"
        width = max(len(text) for text, _ in lines)
        return "".join(f"{text:<{width}}  # {origin}\n" if origins else f"{text}\n" for text, origin in lines)

    def _lines(self) -> Iterator[tuple[str, str]]:
        """Yield each line of YAML with the origin of its value."""
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
    """Convert a value of a Config to dicts, lists and scalars."""
    if isinstance(value, Config):
        return {key: to_plain(node.value) for key, node in value._nodes.items()}
    return [to_plain(item) for item in value] if isinstance(value, list) else value


def _indented(config: Config) -> Iterator[tuple[str, str]]:
    return ((f"  {text}", origin) for text, origin in config._lines())


def _item_lines(item: Any, origin: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a list item, the first one after "- ". `origin` is that of the list."""
    if not isinstance(item, Config) or not item:
        yield f"- {flow(to_plain(item))}", origin
        return
    for number, (text, line_origin) in enumerate(_indented(item)):
        yield (f"-{text[1:]}" if number == 0 else text), line_origin
