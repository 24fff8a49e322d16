"""A partial override of a default component keeps the other values of that default, which its owner chose."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.config import registry
from ppdet_lite.config.check import check
from ppdet_lite.config.checked_config import to_plain
from ppdet_lite.config.registry import Parameter, build, parameters, slot_of
from ppdet_lite.config.type_hints import find_mistakes
from ppdet_lite.config.yaml_nodes import flow, parse
from ppdet_lite.core.errors import UserError
from ppdet_lite.modeling.matching import Matcher

QUICKSTART = Path(__file__).resolve().parents[2] / "configs/quickstart/shapes_r18_fpn.yml"


def defaults_of(classes: list[type]) -> dict[str, Parameter]:
    """Return every component parameter with a default instance, by "Owner.name"."""
    return {
        f"{cls.__name__}.{name}": parameter
        for cls in classes
        for name, parameter in parameters(cls).items()
        if not parameter.derived and slot_of(parameter.hint) is not None and is_dataclass(parameter.default)
    }


DEFAULTS = defaults_of(list(registry._registry.values()))


def variants(default: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield, for every value in a default instance at any depth, an override of it alone and the expected instance."""
    hints = parameters(type(default))
    for field in fields(default):
        value = getattr(default, field.name)
        if is_dataclass(value):
            for override, expected in variants(value):
                yield {field.name: override}, replace(default, **{field.name: expected})
        elif slot_of(hints[field.name].hint) is None:
            other, expected = other_value(default, field.name, hints[field.name].hint)
            yield {field.name: other}, expected


def other_value(default: Any, name: str, hint: Any) -> tuple[Any, Any]:
    """Return another value that the hint and the constructor accept, and the instance that has it."""
    value = getattr(default, name)
    candidates = [*get_args(hint), [1], [0.25], [0.25] * 3]
    if isinstance(value, bool):
        candidates = [not value]
    elif isinstance(value, int | float):
        candidates = [value + 1, value + 0.125, value / 2, *candidates]
    for other in candidates:
        if other != value and isinstance(other, bool | int | float | str | list) and not find_mistakes(hint, other):
            try:
                return other, replace(default, **{name: tuple(other) if isinstance(value, tuple) else other})
            except (ValueError, UserError):  # the constructor rejects the combination
                continue
    raise AssertionError(f"no other value of {name} found")


def override_of(part: dict[str, Any]) -> str:
    """Return {"a": {"b": 1}} as "a.b=1"."""
    (key, value), path = *part.items(), []
    while isinstance(value, dict):
        path.append(key)
        ((key, value),) = value.items()
    return ".".join([*path, key]) + f"={flow(value)}"


def as_plain(value: Any) -> Any:
    """Return an instance as a config shows it."""
    if is_dataclass(value):
        return {field.name: as_plain(getattr(value, field.name)) for field in fields(value)}
    return list(map(as_plain, value)) if isinstance(value, list | tuple) else value


def without_types(value: Any) -> Any:
    """Return a plain value without the keys that name a class."""
    if isinstance(value, dict):
        return {key: without_types(child) for key, child in value.items() if key != "type"}
    return value


def test_the_walk_finds_the_defaults() -> None:
    expected = {"RPN.matcher", "RPN.sampler", "RPN.anchors", "RoISampler.matcher", "RoISampler.sampler", "Data.loader"}
    expected |= {"FasterRCNN.roi_sampler", "FasterRCNN.postprocess", "Data.preprocess", "Recipe.eval", "Recipe.runtime"}
    assert expected <= set(DEFAULTS)


@pytest.mark.parametrize("owner", sorted(DEFAULTS))
def test_the_other_values_are_those_of_the_owner(owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every parameter of the registry and every value in its default."""
    parameter = DEFAULTS[owner]

    @dataclass(frozen=True)
    class Root:
        part: parameter.hint = parameter.default

    Root.__init__.__annotations__["part"] = parameter.hint
    monkeypatch.setitem(registry._registry, "Root", Root)
    cases = list(variants(parameter.default))
    assert cases
    for override, expected in cases:
        config = check(parse(flow({"part": override}), lambda line: "x.yml"), Root)
        built = build(config["part"])
        assert as_plain(built) == as_plain(expected), override
        assert without_types(to_plain(config["part"])) == as_plain(expected), override
        dumped = check(parse(config.dump(), lambda line: "x.yml"), Root)
        assert dumped == config


def test_another_class_has_its_own_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a file changes the `type` of its base; the default's own class keeps the values."""

    class Strict(Matcher):
        pass

    monkeypatch.setitem(registry._registry, "Strict", Strict)
    options = ["model.rpn.matcher.type={}", "model.rpn.matcher.crowd_coverage=0.75"]
    built = {
        name: build(load_config(QUICKSTART, [options[0].format(name), options[1]])["model"]["rpn"]["matcher"])
        for name in ("Matcher", "Strict")
    }
    assert built["Matcher"] == Matcher(0.7, 0.3, True, 0.75)
    assert built["Strict"] == Strict(0.5, 0.5, False, 0.75)


@pytest.mark.parametrize("way", ["yaml", "option", "both"])
def test_in_a_file_and_on_the_command_line(way: str, tmp_path: Path) -> None:
    """`--print-config` shows where each value comes from."""
    path = tmp_path / "mine.yml"
    in_file = "" if way == "option" else "model: {rpn: {matcher: {crowd_coverage: 0.75}}}"
    path.write_text(f"_base_: {QUICKSTART}\n{in_file}\n")
    options = {"option": ["model.rpn.matcher.crowd_coverage=0.75"], "both": ["model.rpn.matcher.background_iou=0.25"]}
    config = load_config(path, options.get(way, []))
    assert build(config["model"]["rpn"]["matcher"]) == Matcher(0.7, 0.25 if way == "both" else 0.3, True, 0.75)
    assert config.origin("model.rpn.matcher.foreground_iou") == "default of RPN"
    place = "command line" if way == "option" else f"{path}:2"
    assert config.origin("model.rpn.matcher.crowd_coverage") == place
    assert "crowd_coverage: 0.75" in config.dump()
