"""The check of a tree against constructors: defaults, and each kind of mistake with its exact line."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from ppdet_lite.config import registry
from ppdet_lite.config.check import check
from ppdet_lite.config.checked_config import to_plain
from ppdet_lite.config.registry import Derived, register
from ppdet_lite.config.yaml_nodes import parse
from ppdet_lite.core.errors import UserError

Norm = Literal["none", "frozen_bn", "gn"]


class Neck:
    """Not registered itself: a config must choose."""


class FPN(Neck):
    def __init__(self, in_channels: Derived[Sequence[int]], out_channels: int = 256, norm: Norm = "none") -> None: ...


class PAFPN(Neck):
    def __init__(self, in_channels: Derived[Sequence[int]], depth: int) -> None: ...


class Identity(Neck):
    pass


class Transform:
    pass


class Flip(Transform):
    def __init__(self, prob: Annotated[float, Field(ge=0, le=1)] = 0.5) -> None: ...


class Resize(Transform):
    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None: ...


@dataclass(frozen=True)
class Loader:
    workers: int = 2
    pad: Sequence[float] = (0.5, 1.0)


@dataclass(frozen=True)
class Train:
    epochs: int
    loader: Loader


@dataclass(frozen=True)
class Recipe:
    neck: Neck
    augment: Sequence[Transform] = ()
    extra: Sequence[Loader] = (Loader(workers=1),)
    loader: Loader = Loader()
    other_loader: Loader = field(default_factory=lambda: Loader(workers=0))
    train: Train | None = None
    folder: Path = Path("output")


class Values:
    def __init__(
        self,
        whole: int = 1,
        number: float = 0.5,
        flag: bool = True,
        text: str = "a",
        norm: Norm = "none",
        version: Literal[1, 2] = 1,
        steps: Sequence[int] = (8, 11),
        size: tuple[int, int] = (1, 2),
        rates: dict[str, float] | None = None,
        seed: int | None = None,
        auto: Literal["auto"] | int = "auto",
        sides: int | Sequence[int] = 800,
        batch: Annotated[int, Field(ge=1)] = 1,
        ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        some: Annotated[Sequence[int], Field(min_length=1, max_length=3)] = (1,),
        name: Annotated[str, Field(pattern="^[a-z]+$")] = "a",
        day: date | None = None,
        anything: Any = None,
    ) -> None: ...


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    monkeypatch.setattr(registry, "_registry", {})
    for cls in [FPN, PAFPN, Identity, Flip, Resize, Loader, Train, Recipe, Values]:
        register(cls)


def checked(text, root=Recipe):
    return check(parse(text, lambda line: f"x.yml:{line}"), root)


def errors_of(text, root=Recipe):
    with pytest.raises(UserError) as caught:
        checked(text, root)
    return str(caught.value).split("\n")


def test_defaults_are_filled_in_as_lists_and_mappings():
    config = checked("neck: {type: FPN}\naugment: [{type: Flip}]\n")
    assert to_plain(config) == {
        "neck": {"type": "FPN", "out_channels": 256, "norm": "none"},
        "augment": [{"type": "Flip", "prob": 0.5}],
        "extra": [{"type": "Loader", "workers": 1, "pad": [0.5, 1.0]}],
        "loader": {"workers": 2, "pad": [0.5, 1.0]},
        "other_loader": {"workers": 0, "pad": [0.5, 1.0]},
        "train": None,
        "folder": "output",
    }
    assert config.component is Recipe
    assert config["neck"].component is FPN
    assert config["augment"][0].component is Flip


def test_a_section_needs_no_type_and_a_missing_one_has_defaults():
    config = checked("neck: {type: Identity}\ntrain: {epochs: 3}\n")
    assert to_plain(config["train"]) == {"epochs": 3, "loader": {"workers": 2, "pad": [0.5, 1.0]}}
    assert config["train"].component is Train
    assert config["train"]["loader"].component is Loader
    assert config.origin("train.loader.workers") == "default of Loader"
    assert config.origin("train.loader") == "default of Train"
    assert config.origin("other_loader.workers") == "default of Recipe"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        # keys
        (
            "neck:\n  type: FPN\n  out_chanels: 3",
            ["x.yml:3: neck.out_chanels: unknown key of FPN; did you mean out_channels?"],
        ),
        ("neck:\n  type: FPN\n  zzz: 3", ["x.yml:3: neck.zzz: unknown key of FPN; valid keys: out_channels, norm"]),
        ("neck: {type: Identity, a: 3}", ["x.yml:1: neck.a: unknown key of Identity; valid keys: none"]),
        ("neck: {type: Identity}\nnek: 3", ["x.yml:2: nek: unknown key of Recipe; did you mean neck?"]),
        (
            "neck:\n  type: FPN\n  in_channels: [3]",
            ["x.yml:3: neck.in_channels: is derived from other parts of the config, remove it"],
        ),
        ("neck:\n  type: PAFPN", ["x.yml:1: neck.depth: is missing, PAFPN requires it"]),
        ("loader: {}", ["x.yml:1: neck: is missing, Recipe requires it (FPN, Identity or PAFPN)"]),
        ("neck: {type: Identity}\ntrain: {}", ["x.yml:2: train.epochs: is missing, Train requires it"]),
        # components
        (
            "neck: {type: FPNN}",
            ["x.yml:1: neck.type: expected FPN, Identity or PAFPN, got 'FPNN' (text); did you mean FPN?"],
        ),
        ("neck: {type: Flip}", ["x.yml:1: neck.type: expected FPN, Identity or PAFPN, got 'Flip' (text)"]),
        ("neck: {type: null}", ["x.yml:1: neck.type: expected FPN, Identity or PAFPN, got null"]),
        ("neck: {norm: gn}", ["x.yml:1: neck: type is missing; choose FPN, Identity or PAFPN"]),
        (
            "neck: FPN",
            ["x.yml:1: neck: expected a mapping with type: FPN, Identity or PAFPN, got 'FPN' (text)"],
        ),
        ("neck: null", ["x.yml:1: neck: expected a mapping with type: FPN, Identity or PAFPN, got null"]),
        ("neck: {type: Identity}\nloader: 3", ["x.yml:2: loader: expected a mapping of arguments of Loader, got 3"]),
        (
            "neck: {type: Identity}\nloader: {type: Train}",
            ["x.yml:2: loader.type: expected Loader, got 'Train' (text)"],
        ),
        (
            "neck: {type: Identity}\naugment: {type: Flip}",
            ["x.yml:2: augment: expected a list of Flip or Resize, got {type: Flip} (a mapping)"],
        ),
        (
            "neck: {type: Identity}\naugment:\n- type: Flip\n- type: Flop",
            ["x.yml:4: augment.1.type: expected Flip or Resize, got 'Flop' (text); did you mean Flip?"],
        ),
        (
            "neck: {type: Identity}\naugment:\n- Flip",
            ["x.yml:3: augment.0: expected a mapping with type: Flip or Resize, got 'Flip' (text)"],
        ),
        # the place inside a value
        (
            "neck: {type: Identity}\naugment:\n- type: Resize\n  sizes:\n  - [1, 2]\n  - [1, b]",
            ["x.yml:6: augment.0.sizes.1.1: expected a whole number, got 'b' (text)"],
        ),
    ],
)
def test_mistakes_in_the_structure(text, lines):
    assert errors_of(text) == lines


def test_all_mistakes_are_reported_one_per_line():
    text = """\
neck:
  type: FPN
  out_channels: wide
  nrom: gn
augment:
- {type: Flip, prob: 2}
- {type: Flap}
train: {epochs: 1.5, loader: {workers: true}}
"""
    assert errors_of(text) == [
        "x.yml:4: neck.nrom: unknown key of FPN; did you mean norm?",
        "x.yml:3: neck.out_channels: expected a whole number, got 'wide' (text)",
        "x.yml:6: augment.0.prob: expected at most 1, got 2",
        "x.yml:7: augment.1.type: expected Flip or Resize, got 'Flap' (text); did you mean Flip?",
        "x.yml:8: train.epochs: expected a whole number, got 1.5",
        "x.yml:8: train.loader.workers: expected a whole number, got true",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("whole: '3'", "whole: expected a whole number, got '3' (text)"),
        ("whole: 3.0", "whole: expected a whole number, got 3.0"),
        ("whole: true", "whole: expected a whole number, got true"),
        ("whole: null", "whole: expected a whole number, got null"),
        ("whole: [1]", "whole: expected a whole number, got [1] (a list)"),
        ("number: true", "number: expected a number, got true"),
        ("number: '0.5'", "number: expected a number, got '0.5' (text)"),
        ("flag: 1", "flag: expected true or false, got 1"),
        ("flag: off", "flag: expected true or false, got 'off' (text)"),
        ("text: 3", "text: expected text, got 3"),
        (
            "norm: frozen_bm",
            "norm: expected 'none', 'frozen_bn' or 'gn', got 'frozen_bm' (text); did you mean frozen_bn?",
        ),
        ("norm: null", "norm: expected 'none', 'frozen_bn' or 'gn', got null"),
        ("version: '1'", "version: expected 1 or 2, got '1' (text)"),
        ("version: true", "version: expected 1 or 2, got true"),
        ("steps: 3", "steps: expected a list, got 3"),
        ("steps: abc", "steps: expected a list, got 'abc' (text)"),
        ("steps: [1, x]", "steps.1: expected a whole number, got 'x' (text)"),
        ("size: [1]", "size: expected more items, got [1] (a list)"),
        ("size: [1, 2, 3]", "size: expected at most 2 items, got [1, 2, 3] (a list)"),
        ("rates: {a: x}", "rates.a: expected a number, got 'x' (text)"),
        ("rates: [1]", "rates: expected a mapping, got [1] (a list)"),
        ("seed: x", "seed: expected a whole number, got 'x' (text)"),
        ("auto: atuo", "auto: expected 'auto' or a whole number, got 'atuo' (text); did you mean auto?"),
        ("sides: x", "sides: expected a whole number or a list, got 'x' (text)"),
        ("sides: [640, x]", "sides.1: expected a whole number, got 'x' (text)"),
        ("batch: 0", "batch: expected at least 1, got 0"),
        ("ratio: 1.0", "ratio: expected less than 1, got 1.0"),
        ("ratio: 0", "ratio: expected more than 0, got 0"),
        ("some: []", "some: expected at least 1 items, got [] (a list)"),
        ("some: [1, 2, 3, 4]", "some: expected at most 3 items, got [1, 2, 3, 4] (a list)"),
        (
            f"whole: [{', '.join(['10'] * 50)}]",
            f"whole: expected a whole number, got [{'10, ' * 14}10,... (a list)",
        ),
        (
            "day: x",
            "day: expected a valid value (Input should be a valid date in the format YYYY-MM-DD, input is too short), "
            "got 'x' (text)",
        ),
        ("name: A1", "name: expected text like ^[a-z]+$, got 'A1' (text)"),
    ],
)
def test_mistakes_in_values(text, message):
    assert errors_of(text, Values) == [f"x.yml:1: {message}"]


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("number", "3", 3),
        ("number", ".inf", float("inf")),
        ("text", "'3'", "3"),
        ("flag", "false", False),
        ("version", "2", 2),
        ("steps", "[]", []),
        ("rates", "{a: 1, b: .5}", {"a": 1, "b": 0.5}),
        ("rates", "null", None),
        ("seed", "3", 3),
        ("auto", "3", 3),
        ("sides", "[640, 800]", [640, 800]),
        ("sides", "640", 640),
        ("anything", "{a: [1, {b: null}]}", {"a": [1, {"b": None}]}),
    ],
)
def test_values_that_fit(key, text, expected):
    config = checked(f"{key}: {text}", Values)
    assert to_plain(config[key]) == expected
    assert config.origin(key) == "x.yml:1"


def test_a_wrong_default_is_reported_too():
    @register
    class Wrong:
        def __init__(self, size: int = "x") -> None: ...

    assert errors_of("{}", Wrong) == ["default of Wrong: size: expected a whole number, got 'x' (text)"]


def test_mistakes_of_developers_are_type_errors():
    class Hidden:
        pass

    @register
    class Asks:
        def __init__(self, part: Hidden) -> None: ...

    @register
    class Holds:
        def __init__(self, part: Any = Hidden) -> None: ...

    with pytest.raises(TypeError, match="neither a plain type nor a registered component; is its module imported"):
        checked("part: 3", Asks)
    with pytest.raises(TypeError, match=r"the default of Holds.part is .*, which YAML cannot represent"):
        checked("{}", Holds)
    with pytest.raises(TypeError, match="is not registered"):
        checked("{}", Hidden)
