"""Converted detectors: their classes, from the file or the usual ones of COCO and VOC; quantized weights."""

import json
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.assembly.conversion import _classes, convert_file
from ppdet_lite.assembly.setup import build_uninitialized, peer_config, state_shapes
from ppdet_lite.core.errors import UserError
from ppdet_lite.peers.dataset_classes import COCO_IDS, COCO_NAMES, VOC_NAMES
from ppdet_lite.peers.files import PeerFile
from ppdet_lite.peers.names import PEERS
from ppdet_lite.storage.pdparams import write_pdparams
from tests.tiny_run import tiny_config


def classes_of(names: list[str] | None, count: int) -> tuple[list[str], list[int]]:
    return tuple(_classes(PeerFile({}, names, "w.pth"), None, count))


def test_category_ids() -> None:
    """COCO's ids have gaps; they are used for COCO's names, whether the file has them or not."""
    coco = (list(COCO_NAMES), list(COCO_IDS))
    assert classes_of(None, 80) == classes_of(list(COCO_NAMES), 80) == coco and coco[1][-1] == 90
    assert classes_of(None, 20) == (list(VOC_NAMES), list(range(1, 21)))
    own = [f"class {i}" for i in range(80)]
    assert classes_of(own, 80) == (own, list(range(1, 81)))
    assert classes_of(["cat", "dog"], 2) == (["cat", "dog"], [1, 2])


def test_the_order_of_the_file_is_kept(tmp_path: Path) -> None:
    """Annotations provide the ids; their order may be another than that of the file's outputs."""
    categories = [{"id": 4, "name": "dog"}, {"id": 9, "name": "cat"}]
    annotations = tmp_path / "train.json"
    annotations.write_text(json.dumps({"images": [{"id": 1}], "annotations": [], "categories": categories}))
    assert _classes(PeerFile({}, ["cat", "dog"], "w.pth"), annotations, 2) == (["cat", "dog"], [9, 4])
    assert _classes(PeerFile({}, None, "w.pth"), annotations, 2) == (["dog", "cat"], [4, 9])
    with pytest.raises(UserError, match=r"train.json: its classes \(dog, cat, ...\) are not those of w.pth \(cat, cow"):
        _classes(PeerFile({}, ["cat", "cow"], "w.pth"), annotations, 2)


@pytest.mark.parametrize(("names", "message"), [(None, "without names"), (["a", "b"], "3 classes, but names for 2")])
def test_classes_without_a_name(names: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=rf"w\.pth: has .*{message}"):
        classes_of(names, 3)


def test_quantized_weights_are_not_converted(tmp_path: Path) -> None:
    config = peer_config(tiny_config(tmp_path), "ppdet")
    shapes = state_shapes(build_uninitialized(config, ["cat", "dog"]))
    ours = {
        name: np.zeros(shape, np.int8 if name == "rpn.conv.weight" else np.float32) for name, shape in shapes.items()
    }
    write_pdparams(tmp_path / "w.pdparams", PEERS["ppdet"](shapes).to_theirs(ours))
    with pytest.raises(UserError, match=r"w\.pdparams: rpn\.conv\.weight is of type int8; use weights that are not"):
        convert_file("ppdet", config, tmp_path / "w.pdparams", tmp_path / "run", tmp_path / "train.json")
    assert not (tmp_path / "run").exists()
