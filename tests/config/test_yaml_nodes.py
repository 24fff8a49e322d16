"""YAML text to a tree with lines, and values back to text, both by the rules of YAML 1.2."""

import math
import random

import pytest

from ppdet_lite.config.yaml_nodes import flow, parse, plain
from ppdet_lite.core.errors import UserError


def tree_of(text):
    return parse(text, lambda line: f"x.yml:{line}")


def value_of(text):
    return plain(tree_of(text))


def error_of(text):
    with pytest.raises(UserError) as caught:
        tree_of(text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 1e-3),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("5.", 5.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("12", 12),
        ("+3", 3),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("off", "off"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("!!float 3", 3.0),
        ("1e", "1e"),
        (".", "."),
    ],
)
def test_scalars_follow_yaml_1_2(text, expected):
    value = value_of(text)
    assert value == expected and type(value) is type(expected)


def test_each_value_has_its_line():
    tree = tree_of("# comment\na:\n  b: 1\n  c:\n  - 2\n  - d:\n      3\n")
    a = tree.value["a"]
    assert a.origin == "x.yml:2"
    assert a.value["b"].origin == "x.yml:3"
    assert a.value["c"].origin == "x.yml:4"
    assert a.value["c"].value[1].origin == "x.yml:6"
    assert a.value["c"].value[1].value["d"].origin == "x.yml:6"  # a value counts where its key stands
    assert plain(tree) == {"a": {"b": 1, "c": [2, {"d": 3}]}}


def test_keys_are_text_as_written():
    assert value_of("1: a\nnull: b\ntrue: c") == {"1": "a", "null": "b", "true": "c"}


def test_aliases_are_copies():
    assert value_of("a: &x {b: 1}\nc: *x") == {"a": {"b": 1}, "c": {"b": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "x.yml:3: duplicate key 'a', already in line 1"),
        ("p:\n  a: 1\n  a: 1", "x.yml:3: duplicate key 'a', already in line 2"),
        ("a: &x [*x]", "x.yml:1: an alias (*name) refers to a value that contains it"),
        ("a: 1\n<<: {b: 2}", "x.yml:2: merge keys (<<) are not supported; use _base_ or ${...}"),
        ("a: 1\n? [b]\n: 2", "x.yml:2: a key must be text, not a list or a mapping"),
        ("a: !!python/name:os.system", "x.yml:1: the tag tag:yaml.org,2002:python/name:os.system is not supported"),
        ("a: !thing {b: 1}", "x.yml:1: the tag !thing is not supported"),
        ("a: !!int abc", "x.yml:1: 'abc' is not a valid int"),
        (
            "a: 1\nb: {c: ${a}}",
            "x.yml:2: not valid YAML: expected ',' or '}', but got '{'; quote '${...}' inside [] and {}",
        ),
        ("a: [1,\nb: 2", "x.yml:2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2", "x.yml:2: not valid YAML: found character '\\t' that cannot start any token"),
        ("a: 1\n---\nb: 2", "x.yml:2: not valid YAML: but found another document"),
        ("a: \x01", "x.yml:1: not valid YAML: special characters are not allowed at position 3"),
    ],
)
def test_mistakes_are_one_line_with_the_place(text, message):
    assert error_of(text) == message


TRICKY = [None, True, False, 0, -7, 10**20, 0.1, 1e-5, 1e22, 3.0, -0.0, math.inf, -math.inf]
TRICKY += [
    "",
    " ",
    "1e-3",
    "3",
    "true",
    "off",
    "null",
    "~",
    "0x10",
    ".5",
    "a: b",
    "a #b",
    "#a",
    "- a",
    "*a",
    "&a",
    "@a",
]
TRICKY += [
    "a, b",
    "[a",
    "{a}",
    "it's",
    '"q"',
    "two\nlines",
    "end\n",
    "\ttab",
    "\x85",
    "\u2028",
    "Grüße 猫 😀",
    "=",
    "<<",
    "x" * 200,
]


@pytest.mark.parametrize("value", TRICKY, ids=ascii)
def test_a_written_value_reads_back(value):
    for whole in (value, [value, value], {"key": value}):
        text = flow(whole)
        assert "\n" not in text
        back = value_of(f"v: {text}  # comment\n")["v"]
        assert back == whole and type(back) is type(whole)


def test_random_text_reads_back_as_value_and_as_key():
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices("ab01 .:-#'\"{}[],&*!|>%@~\n\te+_\\", k=draw.randrange(1, 9)))
        assert value_of(f"{flow(text)}: {flow(text)}\n") == {text: text}


def test_aliases_that_multiply_are_refused():
    levels = "abcdefghij"
    text = "z: &z [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for name, below in zip(levels, "z" + levels):  # 10 ** 11 values
        text += f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]\n"
    assert error_of(text) == "x.yml:1: more than 100000 values, counting a copy for each alias (*name)"
