"""A local server with files of the zoo: of the right names, shapes and formats, with generated weights."""

import hashlib
import http.server
import itertools
import pickle
import struct
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import yaml

from ppdet_lite.peers import zoo
from ppdet_lite.peers.dataset_classes import COCO_IDS, COCO_NAMES
from ppdet_lite.peers.names import PEERS
from ppdet_lite.peers.torch_files import LEGACY_MAGIC
from ppdet_lite.storage import download
from ppdet_lite.storage.pdparams import write_pdparams
from tests.peers.test_peer_files import Global, _ByName, dumped

Arrays = Mapping[str, np.ndarray]


class Site:
    """Serves a folder on this machine, to which all downloads are directed."""

    def __init__(self, folder: Path) -> None:
        site = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                pass

        self.folder, self.asked, self.numbers = folder, [], itertools.count()
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def open(self, request: urllib.request.Request, timeout: float) -> object:
        local = f"http://127.0.0.1:{self.server.server_port}{urlsplit(request.full_url).path}"
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(local, timeout=timeout)

    def path_of(self, entry: zoo.Entry) -> Path:
        """Return the place of an entry's file in the served folder."""
        path = self.folder / urlsplit(entry.remote.url).path.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def offer(site: Site, monkeypatch: pytest.MonkeyPatch, name: str, arrays: Arrays) -> None:
    """Serve arrays as an entry's file, whose published checksum becomes that of the file."""
    path = site.path_of(zoo.find_entry(name))
    write(name.partition("/")[0], path, arrays)
    for algorithm in ("sha256", "md5"):
        digest = hashlib.new(algorithm, path.read_bytes()).hexdigest()
        change(monkeypatch, site, name, lambda fields, a=algorithm, d=digest: a in fields and fields.update({a: d[:8]}))


def change(monkeypatch: pytest.MonkeyPatch, site: Site, name: str, edit: Callable[[dict], object]) -> None:
    """Use a copy of the zoo in which the fields of an entry are edited."""
    projects = yaml.safe_load(zoo.ZOO_FILE.read_text(encoding="utf-8"))
    key, _, stem = name.partition("/")
    edit({**projects[key]["detectors"], **projects[key].get("classifiers", {})}[stem])
    copy = site.folder / f"{next(site.numbers)}.yml"
    copy.write_text(yaml.safe_dump(projects, sort_keys=False), encoding="utf-8")
    monkeypatch.setattr(zoo, "ZOO_FILE", copy)


def theirs(peer: str, ours: Arrays) -> dict[str, np.ndarray]:
    """Convert our arrays to a project's names and layouts."""
    naming = PEERS[peer]({name: array.shape for name, array in ours.items()})
    if peer != "torchvision":
        return naming.to_theirs(ours)
    arrays = {}
    for name, array in ours.items():
        their_name, layout = naming.translate(name)
        arrays[their_name] = layout.to_theirs(array) if layout.to_theirs else _with_91_outputs(array.T, name)
    return arrays


def _with_91_outputs(array: np.ndarray, name: str) -> np.ndarray:
    """Return a classifier's or box regression's array with torchvision's 91 outputs; the unused ones are improbable."""
    if "classify" in name:
        outputs = np.full((91, *array.shape[1:]), -100 if array.ndim == 1 else 0, np.float32)
        outputs[[*COCO_IDS, 0]] = array
        return outputs
    outputs = np.zeros((91, 4, *array.shape[1:]), np.float32)
    outputs[list(COCO_IDS)] = array.reshape(80, 4, *array.shape[1:])
    return outputs.reshape(-1, *array.shape[1:])


def write(project: str, path: Path, arrays: Arrays) -> None:
    """Write arrays as a project publishes them; mmdetection's older files have torch's legacy format."""
    if project == "ppdet":
        write_pdparams(path, arrays)
    elif project == "detectron2":
        content = {"model": dict(arrays), "__author__": "Detectron2 Model Zoo", "matching_heuristics": True}
        path.write_bytes(pickle.dumps(content, 4))
    elif project == "torchvision":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", dumped(_tensors(arrays)))
            for i, array in enumerate(arrays.values()):
                archive.writestr(f"archive/data/{i}", np.ascontiguousarray(array, np.float32).tobytes())
    else:
        content = {"meta": {"CLASSES": tuple(COCO_NAMES), "epoch": 12}, "state_dict": _tensors(arrays)}
        with path.open("wb") as file:
            keys = [str(i) for i in range(len(arrays))]
            for part in (LEGACY_MAGIC, 1001, {"little_endian": True}, content, keys):
                file.write(dumped(part))
            for array in arrays.values():
                file.write(struct.pack("<q", array.size) + np.ascontiguousarray(array, np.float32).tobytes())


def _tensors(arrays: Arrays) -> dict[str, Global]:
    """Return what torch pickles instead of tensors: views of numbered storages."""
    tensors = {}
    for i, (name, array) in enumerate(arrays.items()):
        storage = ("REFERENCE", "storage", _ByName("torch.FloatStorage"), str(i), "cpu", array.size)
        strides = tuple(int(np.prod(array.shape[k + 1 :])) for k in range(array.ndim))
        arguments = (storage, 0, tuple(array.shape), strides, False, {})
        tensors[name] = Global("torch._utils._rebuild_tensor_v2", arguments)
    return tensors


def direct_downloads(monkeypatch: pytest.MonkeyPatch, folder: Path, site: Site) -> None:
    """Use an empty cache in a folder, and a site instead of the network."""
    monkeypatch.setenv("PPDET_LITE_CACHE", str(folder / "cache"))
    monkeypatch.setattr(download, "_open", site.open)
