"""The restricted reader accepts Paddle's files and refuses code."""

import os
import pickle
import random
import re
from collections import OrderedDict

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.storage.pdparams import read_pdparams, write_pdparams

ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7,
    "bytes": np.arange(120, 136, dtype=np.uint8),  # above 127: protocol 2 must encode them
    "steps": np.array(2**40, np.int64),
    "mask": np.array([True, False]),
    "half": np.array([1.5, -2.0], np.float16),
    "empty": np.zeros([0, 4], np.float32),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.array([1, 2**20], ">i4"),
}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert sorted(found) == sorted(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)


@pytest.fixture(scope="module")
def paddle():
    return pytest.importorskip("paddle")


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_state_dict_written_by_paddle(tmp_path, paddle, protocol):
    layer = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm1D(2))
    path = tmp_path / "layer.pdparams"
    paddle.save(layer.state_dict(), str(path), protocol=protocol)
    assert b"StructuredToParameterName@@" in path.read_bytes()
    assert_same(read_pdparams(path), {name: tensor.numpy() for name, tensor in layer.state_dict().items()})


def test_an_optimizer_state_written_by_paddle(tmp_path, paddle):
    layer = paddle.nn.Linear(3, 2)
    rate = paddle.optimizer.lr.StepDecay(0.5, step_size=2)
    optimizer = paddle.optimizer.Momentum(rate, parameters=layer.parameters())
    layer(paddle.ones([4, 3])).sum().backward()
    optimizer.step()
    path = tmp_path / "layer.pdopt"
    paddle.save(optimizer.state_dict(), str(path))
    found = read_pdparams(path)
    assert found["LR_Scheduler.last_lr"] == 0.5
    shapes = sorted(array.shape for name, array in found.items() if "velocity" in name)
    assert shapes == [(2,), (3, 2)]


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_outside_a_state_dict_are_saved_as_tuples(tmp_path, paddle, protocol):
    # A list among the values: paddle.save falls back to pickling each tensor as tuple((name, array)).
    tensors = {"inner": {"w": paddle.to_tensor([1.0, 2.0])}, "b": paddle.to_tensor([[3]])}
    path = tmp_path / "nested.pdparams"
    paddle.save(tensors, str(path), protocol=protocol)
    wanted = {"inner.w": np.array([1.0, 2.0], np.float32), "b": np.array([[3]], np.int64)}
    assert_same(read_pdparams(path), wanted)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_pickled_arrays(tmp_path, protocol):
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps(OrderedDict(ARRAYS), protocol=protocol))
    found = read_pdparams(path)
    assert_same(found, {**ARRAYS, "big_endian": np.array([1, 2**20], np.int32)})
    found["conv.weight"][0] = 0  # may be written to


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_files_of_numpy_1_and_2_name_other_modules(tmp_path, module):
    path = tmp_path / "w.pdparams"
    data = pickle.dumps({"w": np.float32(2.5), "a": np.arange(3)}, protocol=2)  # names in plain text
    path.write_bytes(re.sub(rb"numpy\._?core\.multiarray", module, data))
    assert module in path.read_bytes()
    assert_same(read_pdparams(path), {"w": np.array(2.5, np.float32), "a": np.arange(3)})


def test_chunks_of_big_arrays_are_joined(tmp_path):
    content = {
        "small": np.ones(2),
        "big@@.0": np.arange(4),
        "big@@.1": np.arange(4, 6),
        "UnpackBigParamInfor@@": {"big": {"OriginShape": (2, 3), "slices": ["big@@.0", "big@@.1"]}},
        "StructuredToParameterName@@": {"small": "linear_0.w_0", "big": "linear_0.b_0"},
    }
    path = tmp_path / "w.pdparams"
    path.write_bytes(pickle.dumps(content, protocol=2))
    assert_same(read_pdparams(path), {"small": np.ones(2), "big": np.arange(6).reshape(2, 3)})


class Attack:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "refused"),
    [(os.system, "(posix|nt).system"), (exec, "(builtins|__builtin__).exec"), (eval, "(builtins|__builtin__).eval")],
    ids=["os.system", "exec", "eval"],
)
def test_code_is_refused_and_does_not_run(tmp_path, protocol, function, refused):
    trace = tmp_path / "trace"
    command = f"echo >{trace}" if function is os.system else f"open({str(trace)!r}, 'w')"
    data = pickle.dumps({"w": np.ones(2), "x": Attack(function, command)}, protocol=protocol)
    path = tmp_path / "bad.pdparams"
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"bad.pdparams: refused, it contains code \({refused}\)"):
        read_pdparams(path)
    assert not trace.exists()
    pickle.loads(data)
    assert trace.exists()  # the attack is a real one


def test_a_permitted_name_gives_no_way_to_another(tmp_path):
    path = tmp_path / "bad.pdparams"
    streams = {
        b"\x80\x04\x8c\x05numpy\x8c\x0adtype.type\x93.": "numpy.dtype.type",  # a dotted path
        b"cnumpy\nfromfile\n.": "numpy.fromfile",
        b"cnumpy.core.multiarray\nfromstring\n.": "numpy.core.multiarray.fromstring",
        b"\x80\x02c__builtin__\neval\nX\x011\x85R.".replace(b"X\x011", b"X\x01\0\0\x001"): "__builtin__.eval",
    }
    for stream, name in streams.items():
        path.write_bytes(stream)
        with pytest.raises(UserError, match=rf"refused, it contains code \({name}\)"):
            read_pdparams(path)


@pytest.mark.parametrize("name", ["numpy.core.multiarray _reconstruct", "numpy dtype", "collections OrderedDict"])
def test_a_pickle_cannot_alter_the_reader(tmp_path, name):
    path = tmp_path / "bad.pdparams"
    # GLOBAL name; BUILD (None, {"__call__": None}), which sets an attribute on what the name stands for.
    path.write_bytes(b"c" + name.replace(" ", "\n").encode() + b"\nN}S'__call__'\nNs\x86b.")
    with pytest.raises(UserError, match=r"damaged.*attribute"):
        read_pdparams(path)
    path.write_bytes(pickle.dumps(OrderedDict(w=np.ones(2))))
    assert_same(read_pdparams(path), {"w": np.ones(2)})


def test_what_is_not_numbers_is_refused(tmp_path):
    path = tmp_path / "w.pdparams"
    for content, text in [
        ({"names": np.array(["a"], dtype=object)}, "array of type object"),
        ({"names": np.array(["a"])}, "array of type <U"),
        ({"name": "text"}, "entry 'name' is a str, not an array"),
        ({"many": [np.ones(1)]}, "entry 'many' is a list, not an array"),
        ({"number": 10**30}, "entry 'number' is a int, not an array"),
        ([np.ones(1)], "a list instead of a dict of arrays"),
        (np.ones(1), "instead of a dict of arrays"),
    ]:
        path.write_bytes(pickle.dumps(content, protocol=4))
        with pytest.raises(UserError, match=f"w.pdparams: damaged, or not a Paddle weights file.*{text}"):
            read_pdparams(path)


def test_damaged_files_are_reported(tmp_path):
    path = tmp_path / "w.pdparams"
    whole = pickle.dumps(ARRAYS, protocol=4)
    generator = random.Random(0)
    damaged = [whole[:cut] for cut in range(0, len(whole), 29)] + [generator.randbytes(200) for _ in range(300)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"w\.pdparams: (damaged|refused, it contains code)"):
            read_pdparams(path)
    with pytest.raises(UserError, match=r"none\.pdparams: cannot be read: No such file"):
        read_pdparams(tmp_path / "none.pdparams")


def test_written_files_are_read_by_paddle_and_by_us(tmp_path, paddle):
    path = tmp_path / "new" / "w.pdparams"
    wanted = {name: ARRAYS[name] for name in ("conv.weight", "steps", "mask", "half", "fortran")}
    write_pdparams(path, wanted)
    found = paddle.load(str(path))
    assert sorted(found) == sorted(wanted)
    for name, array in wanted.items():
        assert tuple(found[name].shape) == array.shape
        np.testing.assert_array_equal(np.asarray(found[name]), array)
    assert_same(read_pdparams(path), wanted)
    layer = paddle.nn.Linear(2, 2)
    write_pdparams(path, {"weight": np.full([2, 2], 3, np.float32), "bias": np.zeros(2, np.float32)})
    assert layer.set_state_dict(paddle.load(str(path))) == ([], [])
    assert layer.weight.numpy().tolist() == [[3, 3], [3, 3]]
    assert [entry.name for entry in path.parent.iterdir()] == ["w.pdparams"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "w.pdparams"
    write_pdparams(path, {"w": np.ones(1)})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"w\.pdparams: cannot be written: No space left on device"):
        write_pdparams(path, {"w": np.zeros(1)})
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.pdparams"]
    assert read_pdparams(path)["w"].tolist() == [1]
    with pytest.raises(UserError, match=r"x\.pdparams: cannot be written"):
        write_pdparams(path / "x.pdparams", {})
