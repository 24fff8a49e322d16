"""The registry of components: classes that a config names by `type:`, their constructor parameters, and `build`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ppdet_lite.config.checked_config import Config, to_plain
from ppdet_lite.config.type_hints import convert
from ppdet_lite.core.errors import IncompatibleArguments, UserError

T = TypeVar("T")
C = TypeVar("C", bound=type)

DERIVED = "derived"
Derived = Annotated[T, DERIVED]
"""Type hint of a parameter that is supplied by the code that builds the component. YAML cannot set it."""

_REQUIRED = inspect.Parameter.empty
_registry: dict[str, type] = {}


def register(cls: C) -> C:
    """Register a class under its name, for `type: NAME` in a config.

    Raises TypeError if the constructor cannot be checked (*args, **kwargs, a parameter without a type hint or named
    "type"), and ValueError if another class has the name.
    """
    for parameter in _signature(cls):
        name = f"{cls.__qualname__}.__init__: {parameter.name}"
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise TypeError(f"{name}: a registered constructor may have only parameters that can be passed by keyword")
        if parameter.annotation is parameter.empty:
            raise TypeError(f"{name}: a registered constructor requires a type hint for each parameter")
        if parameter.name == "type":
            raise TypeError(f"{name}: the name is reserved for the key that selects the class")
    known = _registry.setdefault(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(f"{cls.__name__} is already registered by {known.__module__}.{known.__qualname__}")
    _registry[cls.__name__] = cls  # a notebook may define the same class again
    return cls


def components(base: type) -> dict[str, type]:
    """Return `base` and its subclasses that are registered, sorted by name."""
    return {name: cls for name, cls in sorted(_registry.items()) if base in cls.__mro__ and base is not object}


@dataclass(frozen=True)
class Parameter:
    """A constructor parameter. `default` is undefined if the parameter is required."""

    name: str
    hint: Any
    default: Any
    required: bool
    derived: bool


def parameters(cls: type) -> dict[str, Parameter]:
    """Return the constructor parameters of a class by name. The result of a default_factory is the default."""
    signature = _signature(cls)
    hints = get_type_hints(cls.__init__, include_extras=True) if signature else {}
    factories = {}
    if is_dataclass(cls):
        factories = {f.name: f.default_factory for f in fields(cls) if f.default_factory is not MISSING}
    result = {}
    for parameter in signature:
        name, hint = parameter.name, hints[parameter.name]
        default = factories[name]() if name in factories else parameter.default
        derived = DERIVED in getattr(hint, "__metadata__", ())
        result[name] = Parameter(name, hint, default, default is _REQUIRED, derived)
    return result


@dataclass(frozen=True)
class Slot:
    """The components that a type hint accepts: `bases` and their registered subclasses, or a list of these, or null."""

    bases: tuple[type, ...]
    is_list: bool
    optional: bool

    @property
    def choices(self) -> dict[str, type]:
        """The accepted components by name."""
        return {name: cls for base in self.bases for name, cls in components(base).items()}

    @property
    def default_class(self) -> type | None:
        """The class that is used without a `type:` key: the single base, if it is registered itself."""
        base = self.bases[0]
        return base if len(self.bases) == 1 and base in self.choices.values() else None


def slot_of(hint: Any) -> Slot | None:
    """Return the slot of a hint for components (C, C | D, a Sequence, list or tuple of these, | None), or None.

    Raises TypeError for a component inside any other hint, since its arguments would not be checked.
    """
    members = [member for member in _members(hint) if member is not NoneType]
    optional = len(members) < len(_members(hint))
    is_list = len(members) == 1 and _is_sequence(members[0])
    if is_list:
        members = list(_members(get_args(members[0])[0]))
    if members and all(_is_component(member) for member in members):
        return Slot(tuple(members), is_list, optional)
    if any(_is_component(part) for part in _parts(hint)):
        raise TypeError(f"{hint}: a component is allowed only by itself, in a Sequence or in a union of components")
    return None


def build(node: Config, available: Mapping[str, Any] | None = None, **arguments: Any) -> Any:
    """Build the component of a checked node.

    available: values for the Derived parameters of the component; those that it does not declare are ignored.
    arguments: Derived arguments, and replacements of values in the config. Raises TypeError for an unknown one.

    Nested components are built first, from the config alone. A UserError of the constructor is prefixed with the
    location of the node, or of the argument that the error names. IncompatibleArguments become such a UserError.
    """
    if node.component is None:
        raise TypeError(f"{node.location}: not a component but a plain mapping")
    known = parameters(node.component)
    derived = {key: value for key, value in (available or {}).items() if key in known and known[key].derived}
    from_config = {key: _argument(node[key], known[key].hint) for key in node if key in known and key not in arguments}
    with errors_located_at(node):
        return node.component(**{**derived, **from_config, **arguments})


@contextmanager
def errors_located_at(node: Config) -> Iterator[None]:
    """Prefix an error raised in this block with the location of a node, or of the argument that the error names."""
    try:
        yield
    except IncompatibleArguments as error:
        raise UserError(f"{_location(node, error.key)}: {error.reason}") from error
    except UserError as error:
        error.args = (f"{_location(node, error.key)}: {error}",)
        error.key = None
        raise


def _location(node: Config, key: str | None) -> str:
    """Return the location of an argument, by its dotted path, or that of the node if it has no such argument."""
    try:
        return node.location_of(key or "")
    except KeyError:
        return node.location


def _argument(value: Any, hint: Any) -> Any:
    """Return a value of a config as the constructor takes it: components are built, other values converted."""
    slot = slot_of(hint)
    if slot is None:
        return convert(hint, to_plain(value))
    if isinstance(value, list):
        built = [build(item) for item in value]
        return tuple(built) if any(get_origin(member) is tuple for member in _members(hint)) else built
    return None if value is None else build(value)


def _signature(cls: type) -> list[inspect.Parameter]:
    """Return the constructor's parameters without self."""
    if cls.__init__ is object.__init__:
        return []
    return list(inspect.signature(cls.__init__).parameters.values())[1:]


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union, or the hint itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _is_sequence(hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    return origin in (list, Sequence) or (origin is tuple and arguments[1:] == (Ellipsis,))


def _is_component(hint: Any) -> bool:
    return isinstance(hint, type) and get_origin(hint) is None and bool(components(hint))


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a hint and all hints inside it."""
    yield hint
    for argument in get_args(hint):
        yield from _parts(argument)
