"""Reading weights of every kind, and matching them with a model."""

import json
import pickle
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.checkpoint import save_checkpoint
from ppdet_lite.storage.weights import LoadReport, ShapeMismatch, match_weights, read_weights


def save(folder, value):
    groups = {name: {"w": np.full(2, add + value, np.float32)} for name, add in [("model", 0), ("optimizer", 100)]}
    save_checkpoint(folder, groups, {"iteration": value})


def test_a_checkpoint_gives_its_model_group(tmp_path):
    save(tmp_path / "iter_00000020", 20)
    found = read_weights(tmp_path / "iter_00000020")
    assert found.arrays["w"].tolist() == [20, 20]
    assert found.meta == {"iteration": 20}
    assert found.source == str(tmp_path / "iter_00000020")
    groups = {name: {"w": np.full(2, value, np.float32)} for name, value in [("model", 1), ("ema", 2)]}
    save_checkpoint(tmp_path / "averaged", groups, {})
    assert read_weights(tmp_path / "averaged").arrays["w"].tolist() == [2, 2]  # the average of weights, if there is one
    save_checkpoint(tmp_path / "other", {"optimizer": {}}, {})
    with pytest.raises(UserError, match="other: has no group 'model'"):
        read_weights(tmp_path / "other")


@pytest.mark.parametrize("given", ["run", "run/checkpoints"])
def test_a_run_gives_its_best_else_its_latest(tmp_path, given):
    checkpoints = tmp_path / "run" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with pytest.raises(UserError, match=f"{given}: contains no intact checkpoint"):
        read_weights(tmp_path / given)
    for iteration in (20, 40):
        save(checkpoints / f"iter_{iteration:08}", iteration)
    assert read_weights(tmp_path / given).source == str(checkpoints / "iter_00000040")
    save(checkpoints / "best", 20)
    found = read_weights(tmp_path / given)
    assert (found.source, found.meta["iteration"]) == (str(checkpoints / "best"), 20)
    (checkpoints / "best" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"best: incomplete: model\.safetensors is 0 bytes"):  # not silently the latest
        read_weights(tmp_path / given)


def test_files(tmp_path):
    save_file({"b": np.arange(3), "a": np.array(2.5)}, tmp_path / "w.safetensors", metadata={"classes": "cat,dog"})
    found = read_weights(tmp_path / "w.safetensors")
    assert list(found.arrays) == ["a", "b"] and found.arrays["a"].shape == ()
    assert found.meta == {"classes": "cat,dog"}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"a": np.array([1.5])}))
    found = read_weights(tmp_path / "w.pdparams")
    assert found.arrays["a"].tolist() == [1.5] and found.meta == {}


def test_other_files_are_refused(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"")
    (tmp_path / "w.pth").write_bytes(b"")
    (tmp_path / "cut.safetensors").write_bytes(b"abc")
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "bf16.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    (tmp_path / "folder.pdparams").mkdir()
    for name, text in [
        ("none.pdparams", "no such weights; give a .pdparams or .safetensors file"),
        ("w.bin", "unknown file type"),
        ("w.pth", "a file of another project; convert it with tools/convert_weights.py"),
        ("cut.safetensors", "damaged, or of a type that NumPy"),
        ("bf16.safetensors", "damaged, or of a type that NumPy does not have .*bfloat16"),
        ("folder.pdparams", "contains no intact checkpoint"),
    ]:
        with pytest.raises(UserError, match=f"{name}: {text}"):
            read_weights(tmp_path / name)


WANTED = {"conv.w": (2, 3), "conv.b": (2,), "fc.w": (4, 5), "scale": ()}
ARRAYS = {
    "net/conv.w": np.ones([2, 3]),
    "net/fc.w": np.ones([4, 81]),
    "net/scale": np.array(2.0),
    "net/old": np.ones(1),
    "net/older": np.ones(1),
}


def report() -> LoadReport:
    return match_weights(WANTED, ARRAYS, rename=lambda name: name.removeprefix("net/"))


def test_names_and_shapes_are_sorted():
    found = report()
    assert sorted(found.matched) == ["conv.w", "scale"]
    assert found.matched["scale"] is ARRAYS["net/scale"]
    assert found.missing == ["conv.b"]
    assert found.unexpected == ["old", "older"]
    assert found.mismatched == [ShapeMismatch("fc.w", expected=(4, 5), found=(4, 81))]


def test_the_summary_names_every_key():
    assert report().summary().splitlines() == [
        "2 matched, 1 missing, 2 unexpected, 1 mismatched",
        "missing:",
        "  conv.b",
        "unexpected:",
        "  old",
        "  older",
        "mismatched:",
        "  fc.w: expected [4, 5], found [4, 81]",
    ]
    assert match_weights({"a": (1,)}, {"a": np.ones(1)}).summary() == "1 matched, 0 missing, 0 unexpected, 0 mismatched"


def test_incomplete_weights_are_refused():
    with pytest.raises(UserError) as caught:
        report().require_complete("w.pdparams")
    assert str(caught.value) == (
        "w.pdparams: the weights are of another model: 2 matched, 1 missing, 2 unexpected, 1 mismatched; "
        "missing conv.b; unexpected old and 1 more; mismatched fc.w: expected [4, 5], found [4, 81]"
    )
    report().require_any("w.pdparams")
    match_weights({"a": [1]}, {"a": np.ones(1)}).require_complete("w.pdparams")  # shapes as lists, as Paddle gives them
    for wanted, arrays in [({"a": (1,)}, {}), ({}, {"a": np.ones(1)}), ({"a": (1,)}, {"a": np.ones([])})]:
        with pytest.raises(UserError, match="w: the weights are of another model"):
            match_weights(wanted, arrays).require_complete("w")


def test_weights_without_a_match_are_refused():
    with pytest.raises(
        UserError, match=r"w: no array matches this model: 0 matched, 1 missing, 1 unexpected.*missing a; un"
    ):
        match_weights({"a": (1,)}, {"b": np.ones(1)}).require_any("w")


def test_two_arrays_for_one_name_are_refused():
    with pytest.raises(UserError, match="'A' and 'a' are both for the weight 'a'"):
        match_weights({}, {"A": np.ones(1), "a": np.ones(1)}, rename=str.lower)
