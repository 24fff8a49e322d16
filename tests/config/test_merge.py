"""_base_ files and command-line overrides."""

import itertools

import pytest

from ppdet_lite.config.merge import apply_overrides, read_with_bases
from ppdet_lite.config.yaml_nodes import plain
from ppdet_lite.core.errors import UserError


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes files below the working directory."""
    monkeypatch.chdir(tmp_path)

    def write_files(**files):
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return write_files


def loaded(name="x.yml", *overrides):
    return plain(apply_overrides(read_with_bases(name), overrides))


def error_of(name="x.yml", *overrides):
    with pytest.raises(UserError) as caught:
        loaded(name, *overrides)
    return str(caught.value)


def test_the_file_wins_over_its_base_and_mappings_merge(write):
    write(
        sub__base="a: {b: 1, c: {d: 2, e: [1, 2, 3]}}\nf: 1\n",
        sub__x="_base_: base.yml\na: {c: {e: [4]}}\nf: {g: 1}\n",
    )
    assert loaded("sub/x.yml") == {"a": {"b": 1, "c": {"d": 2, "e": [4]}}, "f": {"g": 1}}


def test_a_base_is_found_beside_the_file_that_names_it(write):
    write(one__x="_base_: ../two/y.yml\n", two__y="_base_: z.yml\ny: 1\n", two__z="z: 1\n")
    assert loaded("one/x.yml") == {"z": 1, "y": 1}


def test_later_bases_win(write):
    write(p="v: p\nonly_p: 1\n", q="v: q\n", x="_base_: [p.yml, q.yml]\n", y="_base_: [q.yml, p.yml]\n")
    assert loaded("x.yml") == {"v": "q", "only_p": 1}
    assert loaded("y.yml") == {"v": "p", "only_p": 1}


def test_null_replaces_a_mapping(write):
    write(base="a: {b: 1}\n", x="_base_: base.yml\na: null\n")
    assert loaded() == {"a": None}


def test_a_new_type_discards_arguments_and_the_same_type_does_not(write):
    write(
        base="neck: {type: FPN, channels: 256}\n",
        x="_base_: base.yml\nneck: {type: PAFPN, depth: 2}\n",
        y="_base_: base.yml\nneck: {type: FPN, depth: 2}\n",
    )
    assert loaded("x.yml") == {"neck": {"type": "PAFPN", "depth": 2}}
    assert loaded("y.yml") == {"neck": {"type": "FPN", "channels": 256, "depth": 2}}


@pytest.mark.parametrize("bases", list(itertools.permutations(["left.yml", "right.yml"])))
def test_in_a_diamond_the_changes_of_both_sides_hold(write, bases):
    """The shared base is merged once, below both sides. Only values that both sides set depend on their order."""
    write(
        root="a: 0\nb: 0\nc: 0\n",
        left="_base_: root.yml\na: left\nc: left\n",
        right="_base_: root.yml\nb: right\nc: right\n",
        x=f"_base_: [{', '.join(bases)}]\n",
    )
    assert loaded() == {"a": "left", "b": "right", "c": bases[-1].removesuffix(".yml")}


def test_values_keep_the_origin_of_their_layer(write):
    write(base="a:\n  b: 1\n  c: 1\n", sub__x="_base_: ../base.yml\na:\n  c: 2\n")
    tree = apply_overrides(read_with_bases("sub/x.yml"), ["a.d=3"])
    a = tree.value["a"]
    assert tree.origin == "sub/x.yml:1"
    assert a.origin == "base.yml:1"  # where the mapping was begun
    assert {key: node.origin for key, node in a.value.items()} == {
        "b": "base.yml:2",
        "c": "sub/x.yml:3",
        "d": "command line",
    }


def test_a_file_outside_the_working_directory_is_shown_in_full(write, tmp_path, monkeypatch):
    write(x="a: 1\n", sub__y="a: 1\n")
    monkeypatch.chdir(tmp_path / "sub")
    assert read_with_bases("../x.yml").value["a"].origin == f"{tmp_path.as_posix()}/x.yml:1"


def test_a_byte_order_mark_is_ignored(write, tmp_path):
    (tmp_path / "x.yml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert loaded() == {"a": 1}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "x.yml: no such file"),
        ({"x": "a: 1\n_base_: y.yml\n"}, "x.yml:2: _base_: y.yml: no such file"),
        ({"x": ""}, "x.yml:1: the file is empty"),
        ({"x": "# nothing\n"}, "x.yml:1: the file is empty"),
        ({"x": "\n- a\n"}, "x.yml:2: expected a mapping (key: value) at the top of the file"),
        ({"x": "_base_: 3\n"}, "x.yml:1: _base_: expected a path or a list of paths"),
        ({"x": "_base_: [y.yml, null]\n"}, "x.yml:1: _base_: expected a path or a list of paths"),
        ({"x": "_base_: x.yml\n"}, "x.yml:1: _base_: circular base files: x.yml -> x.yml"),
        (
            {"x": "_base_: y.yml\n", "y": "_base_: z.yml\n", "z": "a: 1\n_base_: [y.yml]\n"},
            "z.yml:2: _base_: circular base files: y.yml -> z.yml -> y.yml",
        ),
        ({"x__y": "a: 1", "x": "_base_: x\n"}, "x.yml:1: _base_: x: cannot be read: Is a directory"),
    ],
)
def test_file_mistakes(write, files, message):
    write(**files)
    assert error_of() == message


def test_a_file_that_is_not_text(write, tmp_path):
    (tmp_path / "x.yml").write_bytes(b"a: \xff\xfe\n")
    assert error_of() == "x.yml: is not UTF-8 text"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=2", {"a": {"b": 2, "list": [1, {"c": 1}]}}),
        ("a.b='2'", {"a": {"b": "2", "list": [1, {"c": 1}]}}),
        ("a.b=1e-3", {"a": {"b": 0.001, "list": [1, {"c": 1}]}}),
        ("a.b=x=y", {"a": {"b": "x=y", "list": [1, {"c": 1}]}}),
        ("a.new.deep=[1, 2]", {"a": {"b": 1, "list": [1, {"c": 1}], "new": {"deep": [1, 2]}}}),
        ("a.list.0=5", {"a": {"b": 1, "list": [5, {"c": 1}]}}),
        ("a.list.1.c=off", {"a": {"b": 1, "list": [1, {"c": "off"}]}}),
        ("a.list=[]", {"a": {"b": 1, "list": []}}),
        ("a={b: 3}", {"a": {"b": 3, "list": [1, {"c": 1}]}}),
        ("a=null", {"a": None}),
    ],
)
def test_an_override_sets_one_value(write, override, expected):
    write(x="a: {b: 1, list: [1, {c: 1}]}\n")
    assert loaded("x.yml", override) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a", "command line: 'a' is not of the form a.b.c=value"),
        ("=1", "command line: '=1' is not of the form a.b.c=value"),
        ("a..b=1", "command line: 'a..b=1' is not of the form a.b.c=value"),
        (".a=1", "command line: '.a=1' is not of the form a.b.c=value"),
        ("a =1", "command line: 'a =1' is not of the form a.b.c=value"),
        ("a=", "command line: 'a=' has no value; write a=null, or a='\"\"' for empty text"),
        ("a={b: 1", "command line: not valid YAML: expected ',' or '}', but got '<stream end>', in 'a={b: 1'"),
        ("a={b: 1, b: 2}", "command line: duplicate key 'b', already in line 1, in 'a={b: 1, b: 2}'"),
        ("list.2=1", "command line: list.2: list is a list with items 0 to 1"),
        ("list.-1=1", "command line: list.-1: list is a list with items 0 to 1"),
        ("list.x=1", "command line: list.x: list is a list with items 0 to 1"),
        ("p.none.0=1", "command line: p.none.0: p.none is a list with no items"),
        (
            "p={}",
            "command line: p: {} changes nothing, since it is merged with the keys at x.yml:2; remove it, or "
            "override its keys",
        ),
    ],
)
def test_override_mistakes(write, override, message):
    write(x="list: [1, 2]\np: {none: []}\n")
    assert error_of("x.yml", override) == message


def test_overrides_of_different_values_all_count_in_any_order(write):
    """Also with a new type, which discards the file's arguments for the old component but no override."""
    write(x="neck: {type: FPN, old: 1}\nsteps: [1, 2]\n")
    overrides = ["neck.type=PAFPN", "neck.a=1", "neck={b: 2}", "steps.0=7", "lr=0.1"]
    expected = {"neck": {"type": "PAFPN", "a": 1, "b": 2}, "steps": [7, 2], "lr": 0.1}
    for order in itertools.permutations(overrides):
        assert loaded("x.yml", *order) == expected


def test_of_two_overrides_of_one_value_the_later_wins(write):
    write(x="a: {b: 0}\n")
    assert loaded("x.yml", "a.b=1", "a.b=2") == {"a": {"b": 2}}
    assert loaded("x.yml", "a={b: 2}", "a.b=1") == {"a": {"b": 1}}
    assert loaded("x.yml", "a=[1, 2]", "a.1=3") == {"a": [1, 3]}


def test_overrides_do_not_modify_their_tree(write):
    write(x="a: {b: 0, c: [1]}\n")
    tree = read_with_bases("x.yml")
    apply_overrides(tree, ["a.b=1", "a.c.0=2"])
    assert plain(tree) == {"a": {"b": 0, "c": [1]}}


def test_settings_that_a_new_type_discards_are_told(write, caplog):
    caplog.set_level("INFO", "ppdet_lite")
    write(x="a: {type: One, b: 1, c: 2}\n")
    assert loaded("x.yml", "a.type=Two", "a.b=3") == {"a": {"type": "Two", "b": 3}}
    assert caplog.messages == ["a.type=Two replaces One, whose settings no longer apply: c"]
