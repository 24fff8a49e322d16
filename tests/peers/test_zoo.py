"""The zoo: every published detector that a recipe can express is an entry, builds, and matches its weights."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.assembly.setup import build_uninitialized, load_config, state_shapes
from ppdet_lite.config.recipes import recipe_names
from ppdet_lite.core.errors import UserError
from ppdet_lite.peers.dataset_classes import COCO_NAMES
from ppdet_lite.peers.names import PEERS, find_peer
from ppdet_lite.peers.names.classifiers import ppdet_classifier
from ppdet_lite.peers.zoo import Entry, find_detector, find_entry, zoo_entries
from tests.oracles import manifest
from tests.peers.test_conversion_ppdet import CONFIGS, GOLDENS, SAME_MODEL

ROOT = Path(__file__).resolve().parents[2]
LIST = ROOT.parent / "shared/published_checkpoints.csv"
DETECTORS = [entry for entry in zoo_entries().values() if entry.recipe]
CLASSIFIERS = [entry for entry in zoo_entries().values() if not entry.recipe]
START_OF = {  # recipe -> its pretrain_weights, of those with a vd backbone
    name: load_config(name)["pretrain_weights"] for name in recipe_names() if "_vd_" in name
}
PUBLISHED = {"ppdet": 29, "torchvision": 2, "mmdet": 20, "detectron2": 10}  # without Swin
MMDETECTION = {  # our name without "faster_rcnn_" and "_coco" -> manifest
    "r50_fpn_1x": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "r50_fpn_2x": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "r50_fpn_mstrain_3x": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "r101_fpn_1x": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "r101_fpn_2x": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "x101_64x4d_fpn_1x": "faster_rcnn/faster-rcnn_x101-64x4d_fpn_1x_coco",
    "r50_caffe_fpn_1x": "faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco",
    "r50_caffe_dc5_1x": "faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco",
    "r50_fpn_dconv_c3-c5_1x": "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
    "r50_fpn_mdconv_c3-c5_1x": "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
    "r50_fpn_mdconv_c3-c5_group4_1x": "dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco",
    "r50_fpn_dpool_1x": "dcn/faster-rcnn_r50_fpn_dpool_1x_coco",
    "r50_fpn_mdpool_1x": "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco",
    "r101_fpn_dconv_c3-c5_1x": "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
    "x101_32x4d_fpn_dconv_c3-c5_1x": "dcn/faster-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco",
    "cascade_rcnn_r50_fpn_1x": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
    "cascade_rcnn_r50_fpn_20e": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
    "cascade_rcnn_r101_fpn_1x": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
    "cascade_rcnn_r50_fpn_dconv_c3-c5_1x": "dcn/cascade-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
    "cascade_rcnn_r101_fpn_dconv_c3-c5_1x": "dcn/cascade-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
}


def deeper(shapes: manifest.Shapes) -> manifest.Shapes:
    """Return the arrays of a ResNet 101: those of a ResNet 50 with 23 blocks in stage 4, the last 22 of one shape."""
    more = {name: shape for name, shape in shapes.items() if name.startswith("backbone.layer3.5.")}
    return {**shapes, **{n.replace(".5.", f".{i}.", 1): shape for i in range(6, 23) for n, shape in more.items()}}


def published_shapes(entry: Entry) -> manifest.Shapes:
    """Return the names and shapes of the arrays in an entry's file, from the project's own code."""
    name = entry.name.partition("/")[2]
    if entry.project.key == "ppdet":
        recipes = {config: golden for golden, config in CONFIGS.items()} | SAME_MODEL
        weights = np.load(GOLDENS / f"{recipes[entry.recipe]}.npz")["weights"]
        return {name: tuple(shape) for name, shape in json.loads(str(weights)).items()}
    if entry.project.key == "mmdet":
        shapes = manifest.read("mmdetection", MMDETECTION[name.removeprefix("faster_rcnn_").removesuffix("_coco")])
        return deeper(shapes) if "_r101_" in name else shapes
    if entry.project.key == "torchvision":
        return manifest.read("torchvision", f"{name}{'' if name.endswith('v2') else ', names before 0.14'}")
    models = manifest.models("detectron2")
    model = f"COCO-Detection/{name}"
    return manifest.read("detectron2", model if model in models else model.replace("_3x", "_1x"))


@pytest.mark.parametrize("entry", DETECTORS, ids=lambda entry: entry.name)
def test_every_array_of_the_published_file_has_its_place(entry: Entry) -> None:
    """The recipe builds, and names and shapes match completely in both directions."""
    shapes = published_shapes(entry)
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert find_peer(arrays) == entry.project.key == entry.peer.removesuffix("-caffe")
    config = load_config(entry.spec)
    ours = state_shapes(build_uninitialized(config, COCO_NAMES))
    report = PEERS[entry.peer](ours).to_ours(ours, arrays)
    assert report.is_complete, report.summary()
    assert config["pretrain_weights"] == entry.spec  # a training with this config starts from the file


@pytest.mark.parametrize("entry", CLASSIFIERS, ids=lambda entry: entry.name)
def test_classifiers_are_those_of_recipes(entry: Entry) -> None:
    """Recipes that start from one have its backbone, whose arrays all have a name in it."""
    recipes = [name for name, start in START_OF.items() if start == entry.spec]
    depth = re.search(r"(\d+)_vd", entry.name)[1]
    assert recipes
    for name in recipes:
        config = load_config(name)
        backbone = config["model"]["backbone"]
        assert (backbone["variant"], str(backbone["depth"])) == ("d", depth)
        assert ("X" in entry.name) == (backbone["groups"] == 64) and ("ssld" in entry.name) == ("ssld" in name)
        shapes = state_shapes(build_uninitialized(config, COCO_NAMES))
        trunk = {name: shape for name, shape in shapes.items() if name.startswith(("backbone.", "box_head.res5."))}
        naming = ppdet_classifier(trunk)
        assert all(naming.translate(name) for name in trunk)
    with pytest.raises(UserError, match="weights of a classifier, which detect nothing; use them as pretrain_weights"):
        find_detector(entry.spec)


def test_all_that_is_published_is_listed() -> None:
    counts = {key: sum(entry.project.key == key for entry in DETECTORS) for key in PUBLISHED}
    assert counts == PUBLISHED
    assert len({entry.path for entry in zoo_entries().values()}) == len(zoo_entries())  # no two files at one place
    for entry in zoo_entries().values():
        assert entry.remote.url.startswith("https://") and "license" in dict(entry.facts())
        file, digest = entry.remote.name.rpartition(".")[0], entry.remote.digest
        assert entry.remote.algorithm == ("md5" if entry.project.key == "detectron2" else "sha256")
        if entry.project.key == "ppdet":
            assert digest == ""
        else:
            assert re.search(r"[-_]([0-9a-f]{6}|[0-9a-f]{8})$", file)[1] == digest
        assert entry.recipe is None or 35 < entry.ap < 49


@pytest.mark.skipif(not LIST.exists(), reason="needs the list of published checkpoints")
def test_the_list_of_published_checkpoints_is_complete() -> None:
    """Address, AP and project of each agree; Cascade R-CNN and Swin cannot be expressed."""
    rows = csv.DictReader(io.StringIO(LIST.read_text(encoding="utf-8")))
    expected = {row["url"]: (row["peer"], float(row["coco_box_ap"])) for row in rows if "swin" not in row["model"]}
    assert {entry.remote.url: (entry.peer, entry.ap) for entry in DETECTORS} == expected


def test_what_belongs_to_a_published_number() -> None:
    """torchvision's COCO_V1 weights have batch norms with an epsilon of 0; one AP was measured at several sizes."""
    assert [entry.name for entry in DETECTORS if entry.bn_epsilon is not None] == [
        "torchvision/fasterrcnn_resnet50_fpn"
    ]
    assert find_entry("torchvision/fasterrcnn_resnet50_fpn").bn_epsilon == 0
    tested = load_config("zoo:ppdet/faster_rcnn_r34_fpn_multiscaletest_1x_coco")
    assert tested["eval"]["flip"] and len(tested["eval"]["short_sides"]) == 4
    assert math.isclose(find_entry("ppdet/faster_rcnn_r34_fpn_multiscaletest_1x_coco").ap, 38.2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("zoo:torchvision/fasterrcnn_resnet50_fpnn", "did you mean zoo:torchvision/fasterrcnn_resnet50_fpn?"),
        ("faster_rcnn_dcn_r50_fpn_1x_coco", "did you mean zoo:ppdet/faster_rcnn_dcn_r50_fpn_1x_coco?"),
        ("zoo:x", "`ppdet-lite zoo list` has all names"),
    ],
)
def test_the_nearest_name_is_suggested(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"not in the zoo; {re.escape(hint)}$"):
        find_entry(name)


def test_overrides_of_the_user_take_precedence() -> None:
    config = load_config("zoo:detectron2/faster_rcnn_R_50_C4_1x", ["pretrain_weights=null", "model.rpn.nms_iou=0.6"])
    assert config["pretrain_weights"] is None and config["model"]["rpn"]["nms_iou"] == 0.6
    assert config["data"]["preprocess"]["channels"] == "bgr" and config["model"]["backbone"]["variant"] == "a"


def test_the_page_lists_every_entry() -> None:
    """docs/zoo.md has a row per entry: name, AP and recipe, and the license of each project."""
    page = (ROOT / "docs/zoo.md").read_text(encoding="utf-8")
    rows = [row for row in page.partition("## Entries")[2].splitlines() if row.startswith("| `")]
    expected = [
        f"| `{e.name}` | {'--' if e.ap is None else e.ap} | {f'`{e.recipe}`' if e.recipe else '--'} |"
        for e in zoo_entries().values()
    ]
    assert rows == expected
    for entry in zoo_entries().values():
        assert f"[{entry.project.license}]({entry.project.license_url})" in page and entry.project.page in page
        assert entry.project.terms is None or entry.project.terms.rpartition(": ")[2] in page
