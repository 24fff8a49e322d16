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
    with pytest.raises(UserError, match=r"best: incomplete: model\.safetensors has 0 bytes"):  # not silently the latest
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
    (tmp_path / "f8.safetensors").write_bytes(safetensors_file("F8_E4M3", bytes(2)))
    (tmp_path / "folder.pdparams").mkdir()
    for name, text in [
        ("none.pdparams", "no such weights; give a .pdparams or .safetensors file"),
        ("w.bin", "unknown file type"),
        ("w.pth", "a file of another project; convert it with ppdet-lite convert-weights"),
        ("cut.safetensors", "damaged, or of a type that NumPy"),
        ("f8.safetensors", "damaged, or of a type that NumPy does not have .*float8"),
        ("folder.pdparams", "contains no intact checkpoint"),
    ]:
        with pytest.raises(UserError, match=f"{name}: {text}"):
            read_weights(tmp_path / name)


def safetensors_file(dtype: str, data: bytes) -> bytes:
    """A file with one array "x" of two numbers."""
    header = json.dumps({"x": {"dtype": dtype, "shape": [2], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(header)) + header + data


def test_every_precision_is_read_as_float32(tmp_path):
    """1 and -2.5 as float16, float64 and bfloat16, which Paddle saves as uint16; integers stay as they are."""
    values = np.array([1, -2.5], np.float32)
    bfloat16 = np.array([0x3F80, 0xC020], np.uint16)  # the upper halves of 0x3F800000 and 0xC0200000
    (tmp_path / "bf16.safetensors").write_bytes(safetensors_file("BF16", bfloat16.tobytes()))
    (tmp_path / "bf16.pdparams").write_bytes(pickle.dumps({"x": bfloat16}))
    for dtype in (np.float16, np.float32, np.float64):
        save_file({"x": values.astype(dtype), "n": np.array(3)}, tmp_path / f"{dtype.__name__}.safetensors")
        (tmp_path / f"{dtype.__name__}.pdparams").write_bytes(pickle.dumps({"x": values.astype(dtype)}))
        save_checkpoint(tmp_path / dtype.__name__, {"model": {"x": values.astype(dtype)}}, {})
    files = sorted(tmp_path.iterdir())
    assert len(files) == 11
    for file in files:
        np.testing.assert_array_equal(read_weights(file).arrays["x"], values, err_msg=str(file), strict=True)
    assert read_weights(tmp_path / "float16.safetensors").arrays["n"].dtype == np.int64


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    """1e39 is finite as float64, but not as float32."""
    arrays = {"a": np.ones(2), "b.w": np.array([1, value]), "c": np.array([value, value])}
    save_checkpoint(tmp_path / "folder", {"model": arrays}, {})
    save_file(arrays, tmp_path / "w.safetensors")
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(arrays))
    for file in tmp_path.iterdir():
        with pytest.raises(UserError, match=rf"{file.name}: b\.w has 1 values that are not finite"):
            read_weights(file)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.complex64])
def test_quantized_weights_are_refused(dtype):
    found = match_weights({"w": (2,)}, {"w": np.ones(2, dtype)})
    for check in (found.require_complete, found.require_any):
        with pytest.raises(UserError, match=f"q: w is of type {np.dtype(dtype)}; use weights that are not quantized"):
            check("q")


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
