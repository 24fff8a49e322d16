"""Components: classes that a config names by `type:`; what their constructors take; how they are built."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ppdet_lite.config.checked_config import Config, to_plain
from ppdet_lite.config.type_hints import convert
from ppdet_lite.core.errors import UserError

T = TypeVar("T")
C = TypeVar("C", bound=type)

DERIVED = "derived"
Derived = Annotated[T, DERIVED]
"""A parameter that the assembling code supplies; YAML may not set it."""

_REQUIRED = inspect.Parameter.empty
_registry: dict[str, type] = {}


def register(cls: C) -> C:
    """Make a class known under its name, so that a config can say `type: NAME`.

    Raises TypeError where the constructor cannot be checked (*args, **kwargs, a parameter without a hint or named
    "type") and ValueError if another class has the name.
    """
    for parameter in _signature(cls):
        name = f"{cls.__qualname__}.__init__: {parameter.name}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{name}: a registered constructor takes keyword arguments by name only")
        if parameter.annotation is parameter.empty:
            raise TypeError(f"{name}: a registered constructor needs a type hint for each parameter")
        if parameter.name == "type":
            raise TypeError(f"{name}: the name is taken, it chooses the class")
    known = _registry.setdefault(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{cls.__name__} is already registered by {known.__module__}.{known.__qualname__}")
    _registry[cls.__name__] = cls  # a notebook may define the same class again
    return cls


def components(base: type) -> dict[str, type]:
    """The registered classes that are `base` or derive from it, by name, sorted."""
    return {name: cls for name, cls in sorted(_registry.items()) if base in cls.__mro__ and base is not object}


@dataclass(frozen=True)
class Parameter:
    """One constructor parameter; `default` means nothing where `required`."""

    name: str
    hint: Any
    default: Any
    required: bool
    derived: bool


def parameters(cls: type) -> dict[str, Parameter]:
    """The constructor parameters of a class by name; a dataclass's default_factory counts as its value."""
    signature = _signature(cls)
    hints = get_type_hints(cls.__init__, include_extras=True) if signature else {}
    factories = {}
    if is_dataclass(cls):
        factories = {f.name: f.default_factory for f in fields(cls) if f.default_factory is not MISSING}
    found = {}
    for parameter in signature:
        name, hint = parameter.name, hints[parameter.name]
        default = factories[name]() if name in factories else parameter.default
        derived = DERIVED in getattr(hint, "__metadata__", ())
        found[name] = Parameter(name, hint, default, default is _REQUIRED, derived)
    return found


@dataclass(frozen=True)
class Slot:
    """What a hint says about components: those that derive from `bases`, one or `many` in a list, or null."""

    bases: tuple[type, ...]
    many: bool
    optional: bool

    @property
    def choices(self) -> dict[str, type]:
        """The components that fit, by name."""
        return {name: cls for base in self.bases for name, cls in components(base).items()}

    @property
    def settings(self) -> type | None:
        """The class that is meant where `type:` is left out, if there is one."""
        base = self.bases[0]
        return base if len(self.bases) == 1 and base in self.choices.values() else None


def slot_of(hint: Any) -> Slot | None:
    """The slot that a hint describes (C, C | D, a Sequence, list or tuple of these, | None), None for other hints.

    Raises TypeError for a component inside any other hint: its arguments would go unchecked.
    """
    members = [member for member in _members(hint) if member is not NoneType]
    optional = len(members) < len(_members(hint))
    many = len(members) == 1 and _is_sequence(members[0])
    if many:
        members = _members(get_args(members[0])[0])
    if members and all(_is_component(member) for member in members):
        return Slot(tuple(members), many, optional)
    if any(_is_component(part) for part in _parts(hint)):
        raise TypeError(f"{hint}: a component may stand alone, in a Sequence or in a union of components only")
    return None


def build(node: Config, offered: Mapping[str, Any] | None = None, **given: Any) -> Any:
    """Make the component of a checked node.

    given: Derived arguments, and any others in place of what the config says; TypeError for one it does not take.
    offered: values of which the component gets those that it declares as Derived; it need not want them all.

    Components inside are built first, from the config alone. A UserError of the constructor gains the node's place in
    front, or that of the argument which it names.
    """
    if node.component is None:
        raise TypeError(f"{node.place}: not a component but a plain mapping")
    known = parameters(node.component)
    wanted = {key: value for key, value in (offered or {}).items() if key in known and known[key].derived}
    arguments = {**wanted, **given}
    for key in node:
        if key in known and key not in given:
            arguments[key] = _argument(node[key], known[key].hint)
    with placed(node):
        return node.component(**arguments)


@contextmanager
def placed(node: Config) -> Iterator[None]:
    """Put the place of a component's node in front of a UserError, or that of the argument which the error names."""
    try:
        yield
    except UserError as error:
        error.args = (f"{node.place_of(error.key) if error.key in node else node.place}: {error}",)
        error.key = None
        raise


def _argument(value: Any, hint: Any) -> Any:
    slot = slot_of(hint)
    if slot is None:
        return convert(hint, to_plain(value))
    if isinstance(value, list):
        built = [build(item) for item in value]
        return tuple(built) if any(get_origin(member) is tuple for member in _members(hint)) else built
    return None if value is None else build(value)


def _signature(cls: type) -> list[inspect.Parameter]:
    """The constructor's parameters without self."""
    if cls.__init__ is object.__init__:
        return []
    return list(inspect.signature(cls.__init__).parameters.values())[1:]


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_sequence(hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    return origin in (list, Sequence) or (origin is tuple and arguments[1:] == (Ellipsis,))


def _is_component(hint: Any) -> bool:
    return isinstance(hint, type) and get_origin(hint) is None and bool(components(hint))


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in get_args(hint):
        yield from _parts(argument)
