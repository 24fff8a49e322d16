"""Checks a whole config against the constructors of its components, before anything is built."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.foreign_keys import NUM_CLASSES, suggest
from ppdet_lite.config.messages import did_you_mean, format_value, join_with_or
from ppdet_lite.config.registry import Parameter, Slot, parameters, slot_of
from ppdet_lite.config.type_hints import find_mistakes
from ppdet_lite.config.yaml_nodes import Node, plain
from ppdet_lite.core.errors import UserError


def check(tree: Node, root: type) -> Config:
    """Check a tree against a registered root class and fill in the defaults.

    Raises UserError with one line per mistake: "configs/x.yml:12: model.neck: what is wrong, and the remedy".
    """
    slot = slot_of(root)
    if slot is None:
        raise TypeError(f"{root} is not registered")
    checker = _Checker()
    config = checker.component(tree, slot, "")
    if checker.errors:
        raise UserError("\n".join(checker.errors))
    assert config is not None  # else there are errors
    return config


class _Default(NamedTuple):
    """The default value of an argument, its origin, and its name for the TypeError of an unsupported default."""

    value: Any
    origin: str
    name: str


class _Checker:
    """Walks a tree and the type hints in parallel, collects error messages and returns the values of a Config."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def fail(self, node: Node, path: str, message: str) -> None:
        self.errors.append(": ".join(part for part in (node.origin, path, message) if part))

    def value(self, node: Node, hint: Any, path: str, default: _Default | None = None) -> Any:
        """Check a value against its type hint; return it as a Config stores it, or None for an invalid component."""
        slot = slot_of(hint)
        if slot is None:
            for location, message in find_mistakes(hint, plain(node)).items():
                wrong = node
                for part in location:
                    wrong = wrong.value[part]
                self.fail(wrong, ".".join([path, *map(str, location)]), message)
            return _config_value(node, path)
        if node.value is None and slot.optional:
            return None
        if not slot.is_list:
            return self.component(node, slot, path, default)
        if not isinstance(node.value, list):
            self.fail(node, path, f"expected a list of {_choices(slot)}, got {format_value(plain(node))}")
            return None
        return [self.component(item, slot, f"{path}.{index}") for index, item in enumerate(node.value)]

    def component(self, node: Node, slot: Slot, path: str, default: _Default | None = None) -> Config | None:
        """Check a mapping that describes a component. Return None if its class cannot be determined.

        default: the instance that the owner uses if the config has no such mapping. It provides the class and the
        arguments that the mapping does not contain, unless `type` selects another class.
        """
        if not isinstance(node.value, dict):
            cls = slot.default_class
            kind = f"of arguments of {cls.__name__}" if cls else f"with type: {_choices(slot)}"
            expected = f"a mapping {kind}" + (", or null" if slot.optional else "")
            self.fail(node, path, f"expected {expected}, got {format_value(plain(node))}")
            return None
        cls = self.component_class(node, slot, path, default)
        if cls is None:
            return None
        return self.arguments(node, cls, path, default if default and type(default.value) is cls else None)

    def component_class(self, node: Node, slot: Slot, path: str, default: _Default | None) -> type | None:
        """Return the class that a component's mapping names, or None after recording an error."""
        if "type" not in node.value:
            if default and is_dataclass(default.value):
                return type(default.value)
            if slot.default_class is None:
                self.fail(node, path, f"type is missing; choose {_choices(slot)}")
            return slot.default_class
        kind = node.value["type"]
        if isinstance(kind.value, str) and kind.value in slot.choices:
            return slot.choices[kind.value]
        hint = did_you_mean(kind.value, slot.choices) if isinstance(kind.value, str) else ""
        self.fail(kind, _join(path, "type"), f"expected {_choices(slot)}, got {format_value(plain(kind))}{hint}")
        return None

    def arguments(self, node: Node, cls: type, path: str, instance: _Default | None = None) -> Config:
        """Check a component's keys and values against its constructor. Keys of the Config have the constructor's order.

        instance: provides the arguments that the mapping does not contain; None: the constructor's defaults do.
        """
        known = parameters(cls)
        for key, child in node.value.items():
            if key.lower() == "num_classes":
                self.fail(child, _join(path, key), NUM_CLASSES)
            elif key not in known and key != "type":
                names = [name for name, parameter in known.items() if not parameter.derived]
                hint = suggest(key, path, names) or f"; valid keys: {', '.join(names) or 'none'}"
                self.fail(child, _join(path, key), f"unknown key of {cls.__name__}{hint}")
            elif key in known and known[key].derived:
                self.fail(child, _join(path, key), "is derived from other parts of the config, remove it")
        nodes = {"type": node.value["type"]} if "type" in node.value else {}
        for name, parameter in known.items():
            if parameter.derived:
                continue
            default = _default_of(parameter, cls, instance)
            child = node.value.get(name) or _default_node(parameter, cls, default)
            if child is None:
                slot = slot_of(parameter.hint)
                choices = f" ({_choices(slot)})" if slot else ""
                self.fail(node, _join(path, name), f"is missing, {cls.__name__} requires it{choices}")
            else:
                value = self.value(child, parameter.hint, _join(path, name), default)
                nodes[name] = Node(value, child.origin)
        return Config(nodes, node.origin, path, cls)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _choices(slot: Slot) -> str:
    return join_with_or(slot.choices)


def _config_value(node: Node, path: str) -> Any:
    """Return a plain value as a Config stores it: mappings become Configs, also inside lists."""
    if isinstance(node.value, dict):
        nodes = {key: Node(_config_value(child, _join(path, key)), child.origin) for key, child in node.value.items()}
        return Config(nodes, node.origin, path)
    if isinstance(node.value, list):
        return [_config_value(item, f"{path}.{index}") for index, item in enumerate(node.value)]
    return node.value


def _default_of(parameter: Parameter, cls: type, instance: _Default | None) -> _Default | None:
    """Return the default of an argument: its value in an instance if there is one, else the constructor's."""
    if instance is not None:
        return _Default(getattr(instance.value, parameter.name), instance.origin, instance.name)
    if parameter.required:
        return None
    return _Default(parameter.default, f"default of {cls.__name__}", f"{cls.__name__}.{parameter.name}")


def _default_node(parameter: Parameter, cls: type, default: _Default | None) -> Node | None:
    """Return the node of an argument that is missing from the tree, or None if it is required."""
    slot = slot_of(parameter.hint)
    default_class = slot.default_class if slot and not slot.is_list else None
    optional = slot is not None and slot.optional
    if default is not None:
        node = _node_of(default.value, default.origin, default.name)
        if default_class and type(default.value) is default_class:  # a section without a `type`
            return Node({key: child for key, child in node.value.items() if key != "type"}, default.origin)
        return node
    if default_class is None or optional or _has_required_arguments(default_class):
        return None
    return Node({}, f"default of {cls.__name__}")


def _has_required_arguments(cls: type) -> bool:
    return any(
        not p.derived and _default_node(p, cls, _default_of(p, cls, None)) is None for p in parameters(cls).values()
    )


def _node_of(value: Any, origin: str, name: str) -> Node:
    """Return a default value as a tree. A dataclass instance becomes the mapping that builds it."""
    if is_dataclass(value) and not isinstance(value, type):
        content = {f.name: getattr(value, f.name) for f in fields(value) if f.init}
        derived = {key for key, parameter in parameters(type(value)).items() if parameter.derived}
        content = {"type": type(value).__name__} | {key: content[key] for key in content if key not in derived}
        return _node_of(content, origin, name)
    if isinstance(value, dict):
        return Node({str(key): _node_of(item, origin, name) for key, item in value.items()}, origin)
    if isinstance(value, (list, tuple)):
        return Node([_node_of(item, origin, name) for item in value], origin)
    if value is None or isinstance(value, (bool, int, float, str, PurePath)):
        return Node(str(value) if isinstance(value, PurePath) else value, origin)
    raise TypeError(f"the default of {name} is {value!r}, which YAML cannot represent")
