"""${a.b.c} in a tree."""

import pytest

from ppdet_lite.config.references import resolve
from ppdet_lite.config.yaml_nodes import parse, plain
from ppdet_lite.core.errors import UserError


def tree_of(text):
    return resolve(parse(text, lambda line: f"x.yml:{line}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("t: 3\nr: ${t}", 3),
        ("t: '3'\nr: ${t}", "3"),
        ("t: 1e-3\nr: ${t}", 1e-3),
        ("t: null\nr: ${t}", None),
        ("t: [1, {b: 2}]\nr: ${t}", [1, {"b": 2}]),
        ("t: [1, {b: 2}]\nr: ${t.1.b}", 2),
        ("t: {u: {v: x}}\nr: ${t.u}", {"v": "x"}),
        ("t: 3\nr: a${t}b", "a3b"),
        ("t: 3\nr: ' ${t}'", " 3"),
        ("t: true\nu: null\nr: ${t}/${u}", "true/null"),
        ("t: 0.5\nr: lr_${t}", "lr_0.5"),
        ("t: 'it''s: 3'\nr: <${t}>", "<it's: 3>"),
        ("t: ${u}\nu: ${v}\nv: 7\nr: ${t}", 7),
        ("t: ${u}\nu: {v: 7}\nr: ${t.v}", 7),
        ("t: {u: '${t.v}', v: 7}\nr: ${t}", {"u": 7, "v": 7}),
        ("t: 1\nr: ['${t}', {a: 'x${t}'}]", [1, {"a": "x1"}]),
        ("r: costs 5$ and {braces}", "costs 5$ and {braces}"),
    ],
)
def test_a_reference_is_replaced(text, expected):
    value = plain(tree_of(text))["r"]
    assert value == expected and type(value) is type(expected)


def test_a_resolved_value_has_the_origin_of_the_reference():
    tree = tree_of("a: 1\n\nb: ${a}\nc: x${a}\n")
    assert tree.value["b"].origin == "x.yml:3"
    assert tree.value["c"].origin == "x.yml:4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {neck: {norm: bn}}\nr: ${model.nek.norm}",
            "x.yml:2: r: ${model.nek.norm} is not set; did you mean ${model.neck.norm}?",
        ),
        (
            "model: {neck: {norm: bn}}\np: {q: ['${model.neck.nrm}']}",
            "x.yml:2: p.q.0: ${model.neck.nrm} is not set; did you mean ${model.neck.norm}?",
        ),
        ("r: ${zzz}", "x.yml:1: r: ${zzz} is not set; set it: a default cannot be referenced"),
        ("a: 3\nr: ${a.b}", "x.yml:2: r: ${a.b} is not set; set it: a default cannot be referenced"),
        ("a: [1]\nr: ${a.1}", "x.yml:2: r: ${a.1} is not set; set it: a default cannot be referenced"),
        ("r: ${r}", "x.yml:1: r: circular references: ${r} -> ${r}"),
        ("a: ${b}\nb: x${c}\nc: ${a}", "x.yml:1: a: circular references: ${b} -> ${c} -> ${a} -> ${b}"),
        ("a: {b: '${a}'}", "x.yml:1: a.b: circular references: ${a} -> ${a}"),
        ("a: ${a.b}", "x.yml:1: a: circular references: ${a.b} -> ${a.b}"),
        ("a: {b: 1}\nr: x${a}", "x.yml:2: r: ${a} is a mapping and cannot be inserted into text"),
        ("a: [1]\nr: x${a}", "x.yml:2: r: ${a} is a list and cannot be inserted into text"),
        ("a: 1\nr: ${a", "x.yml:2: r: '${a': write a reference as ${a.b.c}"),
        ("a: 1\nr: ${}", "x.yml:2: r: '${}': write a reference as ${a.b.c}"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(UserError) as caught:
        tree_of(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("link", ["['${a%d}', '${a%d}']", "${a%d}${a%d}"], ids=["lists", "text"])
def test_references_that_multiply_are_refused(link):
    """Each would have 2 ** 40 values."""
    text = "a0: x\n" + "".join(f"a{i + 1}: {link % (i, i)}\n" for i in range(40))
    with pytest.raises(UserError, match=r"more than 100000 values, counting those behind \$\{references\}"):
        tree_of(text)
