"""Small files that would become huge are refused in one line, before they do."""

import codecs
import contextlib
import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.peers.files import read_peer_file
from ppdet_lite.storage import content_limit
from ppdet_lite.storage.weights import read_weights

FLOOR = 8 << 20  # instead of 64 MiB, to keep this test quick
HUGE = 16 * FLOOR
FLOATS = np.zeros(1, np.float32)


@pytest.fixture(autouse=True)
def small_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_limit, "FLOOR", FLOOR)


class Call:
    """Pickles as a call of a function that the readers replace."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: object) -> None: ...


class TorchPickler(pickle._Pickler):
    """Writes names of torch without torch, and ("storage", ...) as persistent references."""

    def persistent_id(self, thing: object) -> object:
        return thing if isinstance(thing, tuple) and thing[:1] == ("storage",) else None

    def save(self, thing: object, save_persistent_id: bool = True) -> None:
        if isinstance(thing, _Named):
            self.write(b"c" + thing.name.encode().replace(b"/", b"\n") + b"\n")
        else:
            super().save(thing, save_persistent_id)


def tensor(count: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Call:
    storage = ("storage", _Named("torch/FloatStorage"), "0", "cpu", count)
    return Call(_Named("torch._utils/_rebuild_tensor_v2"), storage, 0, shape, strides, False, OrderedDict())


def torch_file(path: Path, content: object, count: int = 1, method: int = zipfile.ZIP_STORED) -> Path:
    stream = io.BytesIO()
    TorchPickler(stream, 2).dump(content)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("model/data.pkl", stream.getvalue())
        archive.writestr("model/data/0", bytes(4 * count))
    return path


def pickle_file(path: Path, content: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def doubled(twice: Callable, content: object = 1.0, depth: int = 40) -> object:
    """Return nested containers, each with the same one twice: 2**depth in all, from a few hundred bytes."""
    for _ in range(depth):
        content = twice(content)
    return content


@contextlib.contextmanager
def memory_below(limit: int) -> Iterator[None]:
    """Assert that this block allocates less than `limit` bytes at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def refuse(read: Callable[[Path], object], path: Path) -> None:
    """Assert that a file is refused before it takes much memory."""
    assert path.stat().st_size < HUGE / 20
    limit = FLOOR + content_limit.FACTOR * path.stat().st_size
    with memory_below(3 * limit), pytest.raises(UserError) as caught:
        read(path)
    size, most = path.stat().st_size / 1e6, limit / 1e6
    message = f"{path}: refused, the content of its {size:.1f} MB takes more than {most:.1f} MB of memory; "
    assert str(caught.value) == f"{message}save the weights again, without compression"


def test_a_deflated_file_of_torch(tmp_path: Path) -> None:
    count = HUGE // 4
    refuse(read_peer_file, torch_file(tmp_path / "m.pth", {"w": tensor(count, (count,), (1,))}, count, 8))


def test_a_deflated_description(tmp_path: Path) -> None:
    refuse(read_peer_file, torch_file(tmp_path / "m.pth", {"w": FLOATS, "name": "a" * HUGE}, method=8))


def test_deflated_entries_below_the_limit_are_read(tmp_path: Path) -> None:
    found = read_peer_file(torch_file(tmp_path / "m.pth", {"w": tensor(1000, (1000,), (1,))}, 1000, 8))
    np.testing.assert_array_equal(found.arrays["w"], np.zeros(1000, np.float32))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_of_compression_are_refused(tmp_path: Path, method: int) -> None:
    path = torch_file(tmp_path / "m.pth", {"w": tensor(1, (1,), (1,))}, method=method)
    with pytest.raises(UserError, match=f"has compression method {method}"):
        read_peer_file(path)


def test_an_entry_that_declares_less_than_it_has(tmp_path: Path) -> None:
    """zipfile would decompress all of it."""
    path = torch_file(tmp_path / "m.pth", {"w": tensor(1, (1,), (1,))}, HUGE // 4 + 1, 8)
    data, size = path.read_bytes(), struct.pack("<I", HUGE + 4)
    assert data.count(size) == 2  # before the entry, and in the list of entries
    path.write_bytes(data.replace(size, struct.pack("<I", 4)))
    with memory_below(FLOOR), pytest.raises(UserError, match="CRC"):
        read_peer_file(path)


@pytest.mark.parametrize(
    "content",
    [
        {"w": tensor(1000, (HUGE // 4,), (0,))},
        {"w": tensor(1000, (300, 300, 300), (1, 1, 1))},
        {f"w{i}": tensor(1000, (100, 1000), (0, 1)) for i in range(400)},
    ],
    ids=["stride 0", "overlap", "many"],
)
def test_tensors_that_repeat_their_storage(tmp_path: Path, content: dict) -> None:
    refuse(read_peer_file, torch_file(tmp_path / "m.pth", content, 1000))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("twice", [lambda x: [x, x], lambda x: {1: x, 2: x}], ids=["lists", "dicts"])
def test_repeated_containers_beside_the_weights_are_read_once(tmp_path: Path, twice: Callable, form: str) -> None:
    content = {"state_dict": {"w": 2.0}, "meta": doubled(twice)}
    path = tmp_path / "m.pth"
    if form == "zip":
        torch_file(path, content)
    else:
        legacy = [0x1950A86A20F9469CFC6C, 1001, {}, content, []]
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in (legacy if form == "legacy" else [content])))
    assert read_peer_file(path).arrays == {"w": 2.0}


DATA, TEXT, ITEMS = bytes(FLOOR // 64), "a" * (FLOOR // 64), [None] * (FLOOR // 64)
ARRAY = np.zeros(FLOOR // 128, np.uint16)  # the bits of bfloat16 numbers, converted once for each name
PAIRS = [(i, None) for i in range(FLOOR // 1024)]
REPEATED = {
    "arrays": [Call(np._core.numeric._frombuffer, DATA, np.dtype("u1"), (len(DATA),), "C") for _ in range(400)],
    "names": [ARRAY] * 400,
    "bytes": [Call(codecs.encode, TEXT, "latin1") for _ in range(400)],
    "tuples": [Call(tuple, ITEMS) for _ in range(400)],
    "dicts": [Call(OrderedDict, PAIRS) for _ in range(4000)],
    "nested": [doubled(lambda x: {"a": x, "b": x})],
}


@pytest.mark.parametrize("suffix", ["pdparams", "pkl"])
@pytest.mark.parametrize("kind", REPEATED)
def test_calls_and_references_that_are_repeated(tmp_path: Path, kind: str, suffix: str) -> None:
    content = {f"w{i}": value for i, value in enumerate(REPEATED[kind])}
    read = read_weights if suffix == "pdparams" else read_peer_file
    refuse(read, pickle_file(tmp_path / f"m.{suffix}", content))


@pytest.mark.parametrize("suffix", ["pdparams", "pkl"])
def test_numbers_of_objects_and_lengths_allocate_nothing(tmp_path: Path, suffix: str) -> None:
    """Python's unpickler in C allocates 16 bytes for each number up to that of an object."""
    path = tmp_path / f"m.{suffix}"
    read = read_weights if suffix == "pdparams" else read_peer_file
    path.write_bytes(b"\x80\x02}X\x01\0\0\0wK\x07r" + struct.pack("<I", 1 << 25) + b"s.")
    with memory_below(FLOOR):
        assert read(path).arrays == {"w": 7}
    path.write_bytes(b"\x80\x05\x96" + struct.pack("<Q", 1 << 29) + b".")
    with pytest.raises(UserError, match="damaged"):
        read(path)


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({}, 1 << 62),
        ({}, 1 << 27),
        ({"w": {"dtype": "F32", "shape": [1 << 28], "data_offsets": [0, 1 << 30]}}, None),
        ({"w": {"dtype": "F32", "shape": [1 << 40, 1 << 40, 0], "data_offsets": [0, 0]}}, None),
        ({f"w{i}": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for i in range(9)}, None),
    ],
    ids=["length", "longer than the file", "data", "overflow", "overlap"],
)
def test_headers_of_safetensors(tmp_path: Path, header: dict, length: int | None) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(16))
    with memory_below(FLOOR), pytest.raises(UserError, match=r"m\.safetensors: damaged"):
        read_weights(path)
