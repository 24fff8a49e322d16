"""Other projects' weights files: torch's in both formats, detectron2's pickles; code in them does not run."""

import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.peers.files import read_peer_file
from ppdet_lite.peers.torch_files import LEGACY_MAGIC

FILES = Path(__file__).parent / "files"
BASE = (np.arange(24, dtype=np.float32) / 7).reshape(4, 6)
EXPECTED = {
    "float": BASE,
    "half": np.array([1.5, -2.0], np.float32),
    "bfloat16": np.array([1.0, 3.140625], np.float32),
    "long": np.array(2**40),
    "bool": np.array([True, False]),
    "transposed": BASE.T,
    "row": BASE[2],
    "shared": BASE,
    "empty": np.zeros((0, 4), np.float32),
    "parameter": np.array([[2.0]], np.float32),
    "double": np.array([0.1], np.float32),
    "uint8": np.array([200], np.uint8),
}


@pytest.mark.parametrize(
    ("name", "classes"), [("zip", ["cat", "dog"]), ("legacy", None), ("legacy_mmdet", ["cat", "dog"])]
)
def test_what_torch_has_written(name: str, classes: list[str] | None) -> None:
    found = read_peer_file(FILES / f"{name}.pth")
    assert found.arrays.keys() == EXPECTED.keys() and found.class_names == classes
    for key, expected in EXPECTED.items():
        np.testing.assert_array_equal(found.arrays[key], expected, err_msg=key, strict=True)


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_detectron2_has_written(tmp_path: Path, protocol: int) -> None:
    content = {"model": {"stem.w": BASE, "n": np.float32(3)}, "__author__": "x", "matching_heuristics": True}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_peer_file(tmp_path / "model.pkl")
    assert found.arrays.keys() == {"stem.w", "n"} and found.class_names is None
    np.testing.assert_array_equal(found.arrays["stem.w"], BASE, strict=True)


def test_newer_mmdetection_names_its_classes_elsewhere(tmp_path: Path) -> None:
    content = {"meta": {"dataset_meta": {"classes": ("a", "b")}}, "state_dict": {"w": BASE}}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(content))
    assert read_peer_file(tmp_path / "m.pkl").class_names == ["a", "b"]


@pytest.mark.parametrize("suffix", ["pdparams", "pkl"])
@pytest.mark.parametrize(
    ("content", "used", "unused"),
    [
        ({"state_dict": {"a.w": 1.0}, "state_dict_ema": {"a.w": 2.0}}, "those in 'state_dict'", "state_dict_ema"),
        ({"ema_state_dict": {"steps": 9, "module.a.w": 2.0}, "state_dict": {"a.w": 1.0}}, "'state_dict'", "ema_state"),
        ({"model": {"a.w": 1.0}, "model_ema": {"n_averaged": 9, "module.a.w": 2.0}}, "those in 'model'", "model_ema"),
        ({"state_dict": {"a.w": 1.0, "ema_a_w": 2.0}}, "those in 'state_dict'", r"ema_\*"),
        ({"a.w": 1.0, "ema_a_w": 2.0}, "those at its top level", r"ema_\*"),
        ({"a.w": 1.0, "ema": {"a.w": 2.0}}, "those at its top level", "ema"),
    ],
)
def test_of_plain_and_averaged_weights_the_plain_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: dict, used: str, unused: str, suffix: str
) -> None:
    """As timm, mmengine, torchvision's reference scripts and mmcv save them."""
    path = tmp_path / f"m.{suffix}"
    path.write_bytes(pickle.dumps(content))
    assert read_peer_file(path).arrays == {"a.w": 1.0}
    (message,) = caplog.messages
    assert re.search(
        rf"m\.{suffix} has both plain and averaged weights: .*{used}.* are used, {unused}.* are not", message
    )


def test_averaged_weights_alone_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"epoch": 3, "model_ema": {"a.w": 2.0}}))
    assert read_peer_file(tmp_path / "m.pkl").arrays == {"a.w": 2.0}
    assert "m.pkl: the weights in 'model_ema' are used, which are averaged" in caplog.text


def test_names_that_only_begin_like_averages_are_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    arrays = {"ema_block.w": 1.0, "ema_b_w": 2.0, "schema.w": 3.0}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(arrays))
    assert read_peer_file(tmp_path / "m.pkl").arrays == arrays and not caplog.text


class Global:
    """Pickles as a name that a file may ask for."""

    def __init__(self, name: str, arguments: tuple) -> None:
        self.name, self.arguments = name, arguments

    def __reduce__(self) -> tuple:
        return _ByName(self.name), self.arguments


class _ByName:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: object) -> None: ...


class Called:
    """Pickles as a call of what a reference gives."""

    def __init__(self, reference: tuple) -> None:
        self.reference = reference


class TorchPickler(pickle._Pickler):
    """Writes names of torch without torch, and `Storage` tuples as persistent references."""

    def persistent_id(self, thing: object) -> object:
        return thing[1:] if isinstance(thing, tuple) and thing[:1] == ("REFERENCE",) else None

    def save(self, thing: object, save_persistent_id: bool = True) -> None:
        if isinstance(thing, _ByName):
            module, _, name = thing.name.rpartition(".")
            self.write(b"c" + module.encode() + b"\n" + name.encode() + b"\n")
            return
        if isinstance(thing, Called):
            self.save(thing.reference)
            self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
            return
        super().save(thing, save_persistent_id)


def dumped(content: object) -> bytes:
    stream = io.BytesIO()
    TorchPickler(stream, 2).dump(content)
    return stream.getvalue()


def tensor(count: int = 4, offset: int = 0, shape: tuple = (2, 2), strides: tuple = (2, 1)) -> Global:
    storage = ("REFERENCE", "storage", _ByName("torch.FloatStorage"), "0", "cpu", count)
    return Global("torch._utils._rebuild_tensor_v2", (storage, offset, shape, strides, False, OrderedDict()))


def zip_file(path: Path, content: object, data: bytes = np.arange(4, dtype=np.float32).tobytes()) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", dumped(content))
        archive.writestr("model/data/0", data)
    return path


def test_a_crafted_tensor(tmp_path: Path) -> None:
    found = read_peer_file(zip_file(tmp_path / "m.pth", {"w": tensor()}))
    assert found.arrays["w"].tolist() == [[0, 1], [2, 3]]
    turned = read_peer_file(zip_file(tmp_path / "t.pth", {"w": tensor(offset=1, shape=(3,), strides=(1,))}))
    assert turned.arrays["w"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "broken",
    [
        tensor(offset=1),
        tensor(shape=(2, 3)),
        tensor(shape=(10**9, 10**9), strides=(0, 1)),
        tensor(strides=(-1, 1)),
        tensor(offset=-1),
        tensor(shape=(-2, 2)),
        tensor(count=5),
        tensor(count=10**12),
        tensor(strides=(1,)),
    ],
    ids=["offset", "shape", "huge", "stride", "before", "negative", "count", "huge count", "ranks"],
)
def test_a_tensor_that_exceeds_its_storage_is_refused(tmp_path: Path, broken: Global) -> None:
    with pytest.raises(UserError, match=r"m\.pth: damaged, or not a weights file"):
        read_peer_file(zip_file(tmp_path / "m.pth", {"w": broken}))


def evil(mark: Path) -> Global:
    return Global("posix.system", (f"touch {mark}",))


@pytest.mark.parametrize("where", ["state", "meta", "top", "key"])
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_code_does_not_run(tmp_path: Path, where: str, form: str) -> None:
    mark, weights = tmp_path / "ran", {"w": np.arange(4.0)}
    content: object = {
        "state": {"state_dict": {**weights, "x": evil(mark)}},
        "meta": {"state_dict": weights, "meta": evil(mark), "hooks": [evil(mark)]},
        "top": evil(mark),
        "key": {"state_dict": weights, "nested": {"deep": (evil(mark), [evil(mark)])}},
    }[where]
    path = tmp_path / f"m.{'pkl' if form == 'pickle' else 'pth'}"
    if form == "zip":
        zip_file(path, content)
    elif form == "legacy":
        heads = [dumped(part) for part in (LEGACY_MAGIC, 1001, {"little_endian": True})]
        path.write_bytes(b"".join([*heads, dumped(content), dumped([])]))
    else:
        path.write_bytes(dumped(content))
    if where in ("meta", "key"):
        np.testing.assert_array_equal(read_peer_file(path).arrays["w"], weights["w"])
    else:
        with pytest.raises(UserError, match=r"posix\.system"):
            read_peer_file(path)
    assert not mark.exists()


def whole_model(name: str) -> bytes:
    """The pickle of an object of a class, protocol 2, in a dict under "model": the class is called by NEWOBJ."""
    module, _, cls = name.rpartition(".")
    return b"\x80\x02}X\x05\x00\x00\x00model" + f"c{module}\n{cls}\n".encode() + b")\x81}X\x01\x00\x00\x00aK\x01sbs."


@pytest.mark.parametrize("form", ["zip", "legacy", "alone", "trainer"])
def test_a_whole_pickled_model_is_refused_with_the_remedy(tmp_path: Path, form: str) -> None:
    model, path = Global("nets.Detector", ("resnet",)), tmp_path / "m.pth"
    if form == "zip":
        zip_file(path, model)
    elif form == "legacy":  # torch references the class, with its source code
        reference = ("REFERENCE", "module", _ByName("nets.Detector"), "nets.py", "class Detector: ...")
        heads = [dumped(part) for part in (LEGACY_MAGIC, 1001, {"little_endian": True})]
        path.write_bytes(b"".join([*heads, dumped(Called(reference)), dumped([])]))
    elif form == "alone":
        path.write_bytes(dumped(model))
    else:
        path.write_bytes(whole_model("nets.Detector"))
    with pytest.raises(UserError) as caught:
        read_peer_file(path)
    assert f"{path}: a whole pickled model (nets.Detector)" in str(caught.value)
    assert "save its state_dict(): torch.save(model.state_dict(), FILE)" in str(caught.value)


@pytest.mark.parametrize("storage", ["torch.QInt8Storage", "torch.storage.UntypedStorage"])
def test_a_tensor_of_another_type_is_refused(tmp_path: Path, storage: str) -> None:
    reference = ("REFERENCE", "storage", _ByName(storage), "0", "cpu", 4)
    path = zip_file(tmp_path / "m.pth", {"w": Global("torch._utils._rebuild_qtensor", (reference,))})
    with pytest.raises(UserError, match=rf"m\.pth: has tensors in a {storage}, a type that cannot be read"):
        read_peer_file(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    data = np.array([0, 1, np.nan, 3], np.float32).tobytes()
    with pytest.raises(UserError, match=r"m\.pth: b\.w has 1 values that are not finite"):
        read_peer_file(zip_file(tmp_path / "m.pth", {"a": tensor(shape=(2,), strides=(1,)), "b.w": tensor()}, data))


def test_other_names_become_placeholders(tmp_path: Path) -> None:
    """A chain of getattr over builtins, and states set on placeholders."""
    raw = b"".join(
        [
            b"\x80\x02",
            b"cbuiltins\ngetattr\ncbuiltins\n__import__\nX\x08\x00\x00\x00__call__\x86R",
            b"}X\x01\x00\x00\x00aK\x01sb.",
        ]
    )
    (tmp_path / "m.pkl").write_bytes(raw)
    with pytest.raises(UserError, match="instead of a dict of arrays"):
        read_peer_file(tmp_path / "m.pkl")


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "legacy_mmdet.pth"])
def test_a_truncated_file_is_reported(tmp_path: Path, name: str) -> None:
    whole = (FILES / name).read_bytes()
    for tenth in range(10):
        (tmp_path / name).write_bytes(whole[: len(whole) * tenth // 10])
        with pytest.raises(UserError, match="damaged, or not a weights file"):
            read_peer_file(tmp_path / name)


def test_modified_bytes_of_a_storage_are_reported(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "m.pth", {"w": tensor()})
    data = path.read_bytes().replace(struct.pack("<f", 2.0), struct.pack("<f", 9.0))
    path.write_bytes(data)
    with pytest.raises(UserError, match="CRC"):
        read_peer_file(path)


def test_missing_and_empty_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_peer_file(tmp_path / "none.pth")
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1]))
    with pytest.raises(UserError, match="a list instead of a dict of arrays"):
        read_peer_file(tmp_path / "list.pkl")
    (tmp_path / "text.pth").write_text("<html>404</html>")
    with pytest.raises(UserError, match="damaged, or not a weights file"):
        read_peer_file(tmp_path / "text.pth")
