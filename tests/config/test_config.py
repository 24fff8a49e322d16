"""From file to Config and back: load_tree, check, origins, dump."""

import copy
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from ppdet_lite.config import registry
from ppdet_lite.config.check import check
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.load import load_tree
from ppdet_lite.config.registry import Derived, build, register
from ppdet_lite.config.yaml_nodes import flow, parse
from ppdet_lite.core.errors import UserError


class Neck:
    pass


class FPN(Neck):
    def __init__(self, in_channels: Derived[int], out_channels: int = 256, norm: str = "none") -> None: ...


class PAFPN(Neck):
    def __init__(self, in_channels: Derived[int], depth: int = 1) -> None: ...


@dataclass(frozen=True)
class Step:
    at: int
    sides: Sequence[int] = (1, 2)


@dataclass(frozen=True)
class Recipe:
    neck: Neck
    teacher: Neck | None = None
    steps: Sequence[Step] = ()
    lr: float = 0.02
    rates: dict[str, float] | None = None
    notes: Any = None


@pytest.fixture(autouse=True)
def fakes(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "_registry", {})
    for cls in [FPN, PAFPN, Step, Recipe]:
        register(cls)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "_base_").mkdir()
    (tmp_path / "_base_" / "base.yml").write_text(
        """\
neck:
  type: FPN
  out_channels: 128
teacher: {type: FPN, norm: gn}
lr: 0.01
""",
        encoding="utf-8",
    )
    (tmp_path / "x.yml").write_text(
        """\
_base_: _base_/base.yml
neck: {norm: "off"}
teacher: null
steps:
- at: 3
- {at: 4, sides: ["${lr_step}"]}
rates: {res5.conv: 1e-3, fc: 2}
notes: ${neck.norm}
""",
        encoding="utf-8",
    )


def loaded(*overrides, path="x.yml"):
    return check(load_tree(path, overrides), Recipe)


GOOD = ("steps.1.sides.0=7",)


def test_bases_overrides_references_and_defaults_come_together():
    config = loaded(*GOOD, "neck.norm=gn", "lr=1")
    assert config["neck"]["type"] == "FPN"
    assert config["neck"] == {"type": "FPN", "out_channels": 128, "norm": "gn"}
    assert config["teacher"] is None
    assert config["steps"] == [{"at": 3, "sides": [1, 2]}, {"at": 4, "sides": [7]}]
    assert config["rates"] == {"res5.conv": 0.001, "fc": 2}
    assert config["notes"] == "gn"  # the reference saw the override


def test_errors_name_the_layer_that_is_wrong():
    with pytest.raises(UserError) as caught:
        loaded("steps.1.sides.0=x", "neck.nrom=gn", "lr='1'")
    assert str(caught.value).split("\n") == [
        "command line: neck.nrom: unknown key of FPN; did you mean norm?",
        "command line: steps.1.sides.0: expected a whole number, got 'x' (text)",
        "command line: lr: expected a number, got '1' (text)",
    ]
    with pytest.raises(UserError) as caught:
        loaded()
    assert str(caught.value) == ("x.yml:6: steps.1.sides.0: ${lr_step} is not set; did you mean ${steps}?")
    with pytest.raises(UserError) as caught:
        loaded(*GOOD, "neck.type=PAFPN", "neck.norm=gn")
    assert str(caught.value) == "command line: neck.norm: unknown key of PAFPN; valid keys: depth"


def test_a_new_type_on_the_command_line_discards_arguments():
    assert loaded(*GOOD, "neck.type=PAFPN", "notes=null")["neck"] == {"type": "PAFPN", "depth": 1}


def test_origins():
    config = loaded(*GOOD, "lr=0.5")
    assert {path: config.origin(path) for path in ORIGINS} == ORIGINS
    for unknown in ["nothing", "neck.nothing", "steps.2", "steps.x", "lr.x", ""]:
        with pytest.raises(KeyError):
            config.origin(unknown)


ORIGINS = {
    "neck": "_base_/base.yml:1",
    "neck.type": "_base_/base.yml:2",
    "neck.norm": "x.yml:2",
    "teacher": "x.yml:3",
    "steps": "command line",  # of two layers: the upper one
    "steps.0": "x.yml:5",
    "steps.0.at": "x.yml:5",
    "steps.0.sides": "default of Step",
    "steps.0.sides.1": "default of Step",
    "steps.1.sides.0": "command line",
    "lr": "command line",
    "rates.fc": "x.yml:7",
    "notes": "x.yml:8",
}


def test_dump():
    text = loaded(*GOOD).dump()
    assert text == DUMP


DUMP = """\
neck:
  type: FPN
  out_channels: 128
  norm: off
teacher: null
steps:
- at: 3
  sides: [1, 2]
- at: 4
  sides: [7]
lr: 0.01
rates:
  res5.conv: 0.001
  fc: 2
notes: off
"""


def test_dump_with_origins_has_aligned_comments():
    step = "at: 3          # x.yml:5\nsides: [1, 2]  # default of Step\n"
    assert loaded(*GOOD)["steps"][0].dump(origins=True) == step
    lines = loaded(*GOOD).dump(origins=True).splitlines()
    assert [line.split("  # ")[0].rstrip() for line in lines] == DUMP.splitlines()
    assert len({line.index("  # ") for line in lines}) == 1
    origins = [line.split("  # ")[1] for line in lines]
    assert origins[:4] == ["_base_/base.yml:1", "_base_/base.yml:2", "_base_/base.yml:3", "x.yml:2"]


ODD = [
    None,
    True,
    3,
    1e-5,
    1e22,
    0.1 + 0.2,
    math.inf,
    "3",
    "1e-3",
    "true",
    "off",
    "null",
    "~",
    "",
    "a: b # c",
    "two\nlines",
]
ODD += [[], {}, [[]], [[1, [2]], {"a": [{"b": {}}]}], {"a": {}, "3": [], "x: y": {"null": None}}, ODD.copy()]


@pytest.mark.parametrize("value", ODD, ids=ascii)
@pytest.mark.parametrize("origins", [False, True])
def test_a_dump_loads_again_to_an_equal_config(value, origins, tmp_path):
    @register
    class Odd:
        def __init__(
            self,
            given: Any,
            left_out: Any = value,
            neck: Neck | None = None,
            steps: Sequence[Step] = (Step(1), Step(2, sides=[])),
        ) -> None: ...

    config = check(parse(f"given: {flow(value)}", lambda line: "text"), Odd)
    assert config["given"] == config["left_out"] == value
    (tmp_path / "again.yml").write_text(config.dump(origins), encoding="utf-8")
    again = check(load_tree("again.yml"), Odd)
    assert again == config
    assert again.dump() == config.dump()


def test_a_config_is_read_only():
    config = loaded(*GOOD)
    with pytest.raises(TypeError):
        config["lr"] = 3
    config["steps"][0]["sides"].append(3)
    config["steps"].clear()
    assert config["steps"][0]["sides"] == [1, 2]
    assert isinstance(config["neck"], Config) and copy.deepcopy(config) is config
    assert list(config) == ["neck", "teacher", "steps", "lr", "rates", "notes"] and len(config) == 6


def test_an_empty_config_dumps_as_an_empty_mapping():
    empty = Config({}, "x.yml:1")
    assert empty.dump() == empty.dump(origins=True) == "{}\n"


def test_a_config_shows_its_values():
    assert repr(loaded(*GOOD)["steps"][0]) == "Config({'at': 3, 'sides': [1, 2]})"


def test_the_location_of_a_component():
    config = loaded(*GOOD)
    assert config["neck"].location == "_base_/base.yml:1: neck"
    assert config["steps"][1].location == "x.yml:6: steps.1"
    assert config.location == "x.yml:1"


def test_a_loaded_config_builds():
    config = loaded(*GOOD)
    recipe = build(config, neck=None)
    assert recipe.steps == [Step(3, [1, 2]), Step(4, [7])]
    assert recipe.rates == {"res5.conv": 0.001, "fc": 2.0}


def test_the_config_core_does_without_paddle():
    program = "import sys, ppdet_lite.config.load, ppdet_lite.core.cli; print('paddle' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=registry.__file__.split("ppdet_lite")[0]
    )
    assert done.stdout == "False\n", done.stderr
