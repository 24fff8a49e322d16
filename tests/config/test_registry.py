"""Registration, constructor parameters, component slots, building."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Annotated, Literal, Union

import pytest
from pydantic import Field

from ppdet_lite.config import registry
from ppdet_lite.config.check import check
from ppdet_lite.config.registry import Derived, build, components, parameters, register, slot_of
from ppdet_lite.config.yaml_nodes import parse
from ppdet_lite.core.errors import UserError


class Neck:
    pass


class FPN(Neck):
    def __init__(self, in_channels: Derived[Sequence[int]], out_channels: int = 256, scale: float = 1.0) -> None:
        if out_channels == 0:
            raise UserError("out_channels must not be 0")
        if scale == 0:
            raise UserError("nothing is left", key="scale")
        self.in_channels, self.out_channels, self.scale = in_channels, out_channels, scale


class PAFPN(FPN):
    pass


class Flip:
    def __init__(self, prob: float) -> None:
        self.prob = prob


@dataclass(frozen=True)
class Settings:
    size: tuple[int, int] = (3, 4)
    steps: Sequence[int] = (8, 11)
    names: dict[str, float] = field(default_factory=lambda: {"a": 1})


class Empty:
    pass


class Unregistered:
    pass


@dataclass(frozen=True)
class Root:
    neck: Neck
    settings: Settings
    empty: Empty
    flips: Sequence[Flip] = ()
    more: tuple[Flip, ...] = ()
    spare: Neck | None = None
    plan: Settings = Settings(size=(1, 1))


@dataclass(frozen=True)
class NeckOnly:
    neck: Neck


FAKES = [FPN, PAFPN, Flip, Settings, Empty, Root, NeckOnly]


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(registry, "_registry", {})
    for cls in FAKES:
        register(cls)


def test_register_returns_the_class_and_components_are_sorted_by_name():
    assert register(FPN) is FPN
    assert list(components(Neck).items()) == [("FPN", FPN), ("PAFPN", PAFPN)]
    assert components(PAFPN) == {"PAFPN": PAFPN}
    assert components(Unregistered) == {}
    assert components(object) == {}


def test_a_name_belongs_to_one_class_but_may_be_defined_again():
    other = type("FPN", (), {"__module__": "elsewhere"})
    with pytest.raises(ValueError, match=r"FPN is already registered by test_registry\.FPN"):
        register(other)
    assert components(FPN)["FPN"] is FPN
    again = type("Flip", (), {"__module__": Flip.__module__, "__qualname__": "Flip"})
    register(again)
    assert components(again) == {"Flip": again}


def test_constructors_that_cannot_be_checked_are_refused():
    class Star:
        def __init__(self, *sizes: int) -> None: ...

    class StarStar:
        def __init__(self, **options: int) -> None: ...

    class Positional:
        def __init__(self, size: int, /) -> None: ...

    class Unhinted:
        def __init__(self, size=3) -> None: ...

    class Type:
        def __init__(self, type: str) -> None: ...

    for cls, message in [
        (Star, "sizes: a registered constructor may have only parameters that can be passed by keyword"),
        (StarStar, "options: a registered constructor may have only parameters that can be passed by keyword"),
        (Positional, "size: a registered constructor may have only parameters that can be passed by keyword"),
        (Unhinted, "size: a registered constructor requires a type hint for each parameter"),
        (Type, "type: the name is reserved for the key that selects the class"),
    ]:
        with pytest.raises(TypeError, match=message):
            register(cls)
        assert cls.__name__ not in registry._registry


def test_parameters_of_a_class():
    found = parameters(PAFPN)
    assert list(found) == ["in_channels", "out_channels", "scale"]
    assert found["in_channels"].derived and found["in_channels"].required
    assert (found["out_channels"].derived, found["out_channels"].required) == (False, False)
    assert (found["out_channels"].hint, found["out_channels"].default) == (int, 256)
    assert parameters(Empty) == {}


def test_a_default_factory_gives_the_default():
    names = parameters(Settings)["names"]
    assert not names.required and names.default == {"a": 1}
    assert names.default is not parameters(Settings)["names"].default


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (Neck, ((Neck,), False, False)),
        (FPN, ((FPN,), False, False)),
        (Neck | None, ((Neck,), False, True)),
        (getitem(Union, (Neck, None)), ((Neck,), False, True)),  # the spelling before X | Y
        (Neck | Flip, ((Neck, Flip), False, False)),
        (Sequence[Neck], ((Neck,), True, False)),
        (list[Neck | Flip] | None, ((Neck, Flip), True, True)),
        (tuple[Neck, ...], ((Neck,), True, False)),
    ],
)
def test_slots(hint, expected):
    slot = slot_of(hint)
    assert (slot.bases, slot.is_list, slot.optional) == expected


@pytest.mark.parametrize(
    "hint", [int, str, int | None, Sequence[int], Literal["FPN"], dict[str, int], Unregistered, object]
)
def test_other_hints_are_no_slots(hint):
    assert slot_of(hint) is None


@pytest.mark.parametrize(
    "hint",
    [Neck | int, Mapping[str, Neck], tuple[Neck, Neck], Sequence[Sequence[Neck]], Annotated[Neck, Field()]],
)
def test_components_elsewhere_in_a_hint_are_refused(hint):
    with pytest.raises(
        TypeError, match="a component is allowed only by itself, in a Sequence or in a union of components"
    ):
        slot_of(hint)


def test_the_default_class_of_a_slot_is_its_registered_base():
    assert slot_of(Settings | None).default_class is Settings
    assert slot_of(FPN).default_class is FPN
    assert slot_of(Neck).default_class is None
    assert slot_of(FPN | Flip).default_class is None


def checked(text, root=Root):
    return check(parse(text, lambda line: f"x.yml:{line}"), root)


def test_build_makes_children_first_and_gives_hinted_types():
    config = checked(
        """
        neck: {type: PAFPN, scale: 2}
        settings: {size: [5, 6], names: {b: 2}}
        flips: [{prob: 0}, {prob: 1}]
        more: [{type: Flip, prob: 0.5}]
        """
    )
    neck = build(config["neck"], in_channels=[1, 2])
    assert type(neck) is PAFPN
    assert (neck.in_channels, neck.out_channels) == ([1, 2], 256)
    assert (neck.scale, type(neck.scale)) == (2.0, float)

    root = build(config, neck=neck)
    assert root.neck is neck
    assert root.settings == Settings(size=(5, 6), steps=[8, 11], names={"b": 2.0})
    assert type(root.settings.size) is tuple and type(root.settings.steps) is list
    assert [flip.prob for flip in root.flips] == [0.0, 1.0] and type(root.flips) is list
    assert [flip.prob for flip in root.more] == [0.5] and type(root.more) is tuple
    assert root.spare is None
    assert root.plan == Settings(size=(1, 1), steps=[8, 11])
    assert type(root.empty) is Empty


def test_arguments_replace_values_of_the_config():
    assert build(checked("out_channels: 8", FPN), in_channels=[1], out_channels=16).out_channels == 16


def test_wrong_arguments_from_the_assembling_code_are_type_errors():
    node = checked("out_channels: 8", FPN)
    with pytest.raises(TypeError, match="in_channels"):
        build(node)
    with pytest.raises(TypeError, match="stride"):
        build(node, in_channels=[1], stride=3)


def test_a_plain_mapping_is_not_built():
    names = checked("neck: {type: FPN}\nsettings: {names: {b: 2}}")["settings"]["names"]
    with pytest.raises(TypeError, match=r"x\.yml:2: settings\.names: not a component but a plain mapping"):
        build(names)


def test_a_user_error_of_a_constructor_gains_its_location():
    node = checked("neck:\n  type: FPN\n  out_channels: 0\n", NeckOnly)
    with pytest.raises(UserError) as caught:
        build(node["neck"], in_channels=[1])
    assert str(caught.value) == "x.yml:1: neck: out_channels must not be 0"


def test_a_user_error_that_names_an_argument_has_its_location():
    node = checked("neck:\n  type: FPN\n  out_channels: 8\n  scale: 0\n", NeckOnly)
    with pytest.raises(UserError) as caught:
        build(node["neck"], in_channels=[1])
    assert str(caught.value) == "x.yml:4: neck.scale: nothing is left" and caught.value.key is None
