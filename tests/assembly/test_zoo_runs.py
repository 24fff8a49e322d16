"""Published weights by name, from a local server to boxes: download, checksum, conversion, detection, training."""

import hashlib
import json
import logging
import math
import re
import sys
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import paddle
import pytest

from ppdet_lite import __main__ as command_line
from ppdet_lite.assembly.pretrained import load_pretrained
from ppdet_lite.assembly.setup import TrainedModel, build_model, load_config
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.assembly.zoo import zoo_folder
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import UserError
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.peers.dataset_classes import COCO_IDS, COCO_NAMES
from ppdet_lite.peers.zoo import find_entry
from ppdet_lite.storage import download
from tests.assembly import zoo_site
from tests.peers.test_zoo import published_shapes
from tests.tiny_run import WITHOUT_STAGE_5

PPDET, TORCHVISION = "ppdet/faster_rcnn_r50_fpn_1x_coco", "torchvision/fasterrcnn_resnet50_fpn"
ONE_OF_EACH = (PPDET, TORCHVISION, "mmdet/faster_rcnn_r50_fpn_1x_coco", "detectron2/faster_rcnn_R_50_FPN_1x")
SMALL = [
    *WITHOUT_STAGE_5,
    "model.backbone.depth=18",
    "model.neck.out_channels=16",
    "model.box_head.width=16",
    "model.rpn={pre_nms_test: 100, post_nms_test: 30}",
    "data={preprocess: {short_side: 64, long_side: 128}, augment: {short_sides: null}}",
]
DOG = COCO_NAMES.index("dog")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[zoo_site.Site]:
    (tmp_path / "site").mkdir()
    site = zoo_site.Site(tmp_path / "site")
    zoo_site.direct_downloads(monkeypatch, tmp_path, site)
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (6, 9, 3), np.uint8), (96, 64), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "photo.png"), image)
    return tmp_path / "photo.png"


def small_detector(site: zoo_site.Site, monkeypatch: pytest.MonkeyPatch, name: str) -> TrainedModel:
    """Offer a small detector of random weights that finds dogs as an entry's file, and return it."""
    zoo_site.change(monkeypatch, site, name, lambda fields: fields.update(overrides=SMALL))
    config = load_config(f"zoo:{name}")
    model = build_model(config, COCO_NAMES, for_training=False)
    bias = np.zeros(81, np.float32)
    bias[DOG] = 4
    model.predictor.classify.bias.set_value(bias)
    model.backbone.stem.conv.weight.set_value(
        model.backbone.stem.conv.weight / config["data"]["preprocess"]["pixel_range"]
    )
    model.eval()
    ours = {key: value.numpy() for key, value in model.state_dict().items()}
    zoo_site.offer(site, monkeypatch, name, zoo_site.theirs(find_entry(name).peer, ours))
    return TrainedModel(model, list(COCO_NAMES), list(COCO_IDS), build(config["data"]["preprocess"]), "here")


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_whole_way_to_boxes(site, monkeypatch, caplog, photo: Path, name: str) -> None:
    """The boxes are those of the model whose weights are served. Download and conversion happen once."""
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    ours = small_detector(site, monkeypatch, name)
    expected, found = Detector.from_trained(ours)(photo), Detector.load(f"zoo:{name}")(photo)
    assert set(found.names) == {"dog"} and len(found.boxes) == len(expected.boxes) > 0
    tolerance = 1e-3 if name == TORCHVISION else 0  # its batch norms have an epsilon of 0
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=tolerance)
    np.testing.assert_allclose(found.scores, expected.scores, atol=tolerance)
    caplog.clear()
    caplog.set_level(logging.INFO, "ppdet_lite")
    assert Detector.load(f"zoo:{name}")(photo).boxes.tolist() == found.boxes.tolist()
    assert len(site.asked) == 1 and "downloading" not in caplog.text and "converting" not in caplog.text
    run = zoo_folder(name)
    assert (run / "config.yml").exists() and str(run).startswith(str(find_entry(name).path.parent))


@pytest.mark.parametrize("name", [*ONE_OF_EACH, "mmdet/faster_rcnn_r50_caffe_dc5_1x_coco"])
def test_published_shapes_go_the_whole_way(request, site, monkeypatch, photo: Path, name: str) -> None:
    """Files of the real size: 170 MB, or 600 MB for DC5."""
    if not request.config.getoption("--slow"):
        pytest.skip("writes files of the real size; --slow runs it")
    noise = (np.random.default_rng(0).standard_normal(1 << 20) * 0.01).astype(np.float32)
    arrays = {}
    for key, shape in published_shapes(find_entry(name)).items():
        is_scale = len(shape) == 1 and key.endswith(("running_var", "_variance"))
        arrays[key] = np.ones(shape, np.float32) if is_scale else np.resize(noise, math.prod(shape)).reshape(shape)
    naming = zoo_site.PEERS[find_entry(name).peer]({})
    first = 1 if name == TORCHVISION else 0
    arrays[naming.find_classifier(arrays)][first + (COCO_IDS[DOG] - 1 if name == TORCHVISION else DOG)] = 4
    zoo_site.offer(site, monkeypatch, name, arrays)
    found = Detector.load(f"zoo:{name}")(photo)
    assert set(found.names) == {"dog"} and len(found.boxes) > 0


def test_commands(site, monkeypatch, capsys, tmp_path: Path, photo: Path) -> None:
    """`zoo get`, infer and eval with the config of the entry, one after the other."""
    small_detector(site, monkeypatch, PPDET)
    folder = run(monkeypatch, capsys, "zoo", "get", PPDET).splitlines()[-1]
    assert folder == str(zoo_folder(PPDET))
    size = f"{find_entry(PPDET).path.stat().st_size / 1e6:.0f} MB"
    assert f"{size} in {find_entry(PPDET).path}\n" in run(monkeypatch, capsys, "zoo", "show", PPDET)
    listed = run(monkeypatch, capsys, "zoo", "list")
    assert re.search(rf"{PPDET} +AP 38\.4 +{size} +faster_rcnn/faster_rcnn_r50_fpn_1x_coco\n", listed)
    assert listed.count(" MB ") == 1 and listed.count("https://github.com/") >= 4
    output = tmp_path / "predictions"
    run(monkeypatch, capsys, "infer", "--model", f"zoo:{PPDET}", "--input", str(photo), "--output", str(output))
    assert list(output.rglob("photo*"))
    annotations = {
        "images": [{"id": 1, "file_name": photo.name, "height": 64, "width": 96}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 18, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(COCO_IDS, COCO_NAMES, strict=True)],
    }
    (tmp_path / "val.json").write_text(json.dumps(annotations))
    data = [f"data.val.images={tmp_path}", f"data.val.annotations={tmp_path}/val.json", f"output={tmp_path}/out"]
    run(monkeypatch, capsys, "eval", "--model", f"zoo:{PPDET}", "-o", *data)
    assert "AP" in json.loads((tmp_path / "out/faster_rcnn_r50_fpn_1x_coco/metrics.json").read_text())
    assert len(site.asked) == 1


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Run a command in this process and return its standard output."""
    monkeypatch.setattr(sys, "argv", ["ppdet-lite", *arguments])
    try:
        command_line.main()
    except SystemExit as ended:
        assert ended.code == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_training_starts_from_it_with_other_classes(site, monkeypatch, caplog) -> None:
    """Class outputs are copied by name. A config with settings of another project causes a warning."""
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    caplog.set_level(logging.INFO, "ppdet_lite")
    name = "detectron2/faster_rcnn_R_50_FPN_1x"
    theirs = small_detector(site, monkeypatch, name).model
    config = load_config(f"zoo:{name}")
    paddle.seed(1)
    model = build_model(config, ["zebu", "dog"])
    fresh = model.predictor.classify.weight.numpy()
    load_pretrained(model, config["pretrain_weights"], ["zebu", "dog"], None, config)
    found, expected = model.predictor.classify.weight.numpy(), theirs.predictor.classify.weight.numpy()
    np.testing.assert_array_equal(found[:, 1:], expected[:, [DOG, 80]])
    np.testing.assert_array_equal(found[:, 0], fresh[:, 0])
    assert "outputs copied: dog from dog, background; randomly initialized: zebu" in caplog.text
    assert "computes with other settings" not in caplog.text
    plain = load_config("faster_rcnn/faster_rcnn_r50_fpn_1x_coco", SMALL)
    load_pretrained(build_model(plain, ["dog"]), f"zoo:{name}", ["dog"], None, plain)
    warning = next(text for text in caplog.messages if "computes with other settings in detectron2" in text)
    assert (
        "model.backbone.variant a instead of b" in warning and "data.preprocess.channels bgr instead of rgb" in warning
    )


def test_weights_of_a_config(site, monkeypatch, caplog) -> None:
    """`weights: zoo:NAME`, as export uses it, with the config of the entry and with another one."""
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    ours = small_detector(site, monkeypatch, TORCHVISION)
    spec = f"zoo:{TORCHVISION}"
    trained = load_trained(load_config(spec, [f"weights={json.dumps(spec)}"]))
    assert trained.class_names == list(COCO_NAMES) and trained.preprocess == ours.preprocess
    assert "computes with other settings" not in caplog.text
    load_trained(load_config("faster_rcnn/faster_rcnn_r50_fpn_1x_coco", [*SMALL, f"weights={json.dumps(spec)}"]))
    assert "model.roi_pool.aligned False instead of True" in caplog.text


def test_a_classifier_is_downloaded_as_it_is(site, monkeypatch) -> None:
    """The backbone of a vd recipe has the weights of the file."""
    name = "ppdet/ResNet50_vd_pretrained"
    config = load_config("faster_rcnn/faster_rcnn_r50_vd_fpn_1x_coco", SMALL)
    assert config["pretrain_weights"] == f"zoo:{name}"
    source = build_model(config, ["dog"])
    arrays = {key: value.numpy() for key, value in source.backbone.state_dict().items()}
    zoo_site.offer(site, monkeypatch, name, {f"backbone.{key}": array + 1 for key, array in arrays.items()})
    report = load_pretrained(source, f"zoo:{name}", ["dog"])
    assert len(report.matched) == len(arrays)
    np.testing.assert_array_equal(source.backbone.stem.conv1.conv.weight.numpy(), arrays["stem.conv1.conv.weight"] + 1)
    with pytest.raises(UserError, match="weights of a classifier, which detect nothing"):
        Detector.load(f"zoo:{name}")


def refused(monkeypatch, capsys, name: str) -> str:
    """Run `zoo get` and return its message, which is one line with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["ppdet-lite", "zoo", "get", name])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    message = capsys.readouterr().err
    assert ended.value.code == 2 and message.startswith("error: ") and message.count("\n") == 1
    return message


def test_mistakes_are_one_line(site, monkeypatch, capsys) -> None:
    file = site.path_of(find_entry(TORCHVISION))
    file.write_bytes(b"another file")
    assert "its sha256 is" in (message := refused(monkeypatch, capsys, TORCHVISION)) and "not 258fb6c6..." in message
    assert "not in the zoo; did you mean zoo:torchvision/fasterrcnn_resnet50_fpn?" in refused(
        monkeypatch, capsys, "torchvision/faster_rcnn_resnet50_fpn"
    )
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    zoo_site.change(monkeypatch, site, TORCHVISION, lambda fields: fields.update(sha256=digest))
    assert "damaged, or not a weights file" in refused(monkeypatch, capsys, TORCHVISION)

    ppdet = site.path_of(find_entry(PPDET))
    ppdet.write_bytes(b"first")
    assert "damaged" in refused(monkeypatch, capsys, PPDET)
    find_entry(PPDET).path.write_bytes(b"second")
    assert "was recorded at the first download: the file was changed" in refused(monkeypatch, capsys, PPDET)


def test_without_a_network_the_message_has_address_and_place(site, monkeypatch, capsys) -> None:
    def offline(request: SimpleNamespace, timeout: float) -> None:
        raise urllib.error.URLError(OSError(101, "Network is unreachable"))

    monkeypatch.setattr(download, "_open", offline)
    entry = find_entry(PPDET)
    message = refused(monkeypatch, capsys, PPDET)
    assert f"download {entry.remote.url} yourself and put it at {entry.path}\n" in message


def test_an_interrupted_conversion_leaves_nothing(site, monkeypatch) -> None:
    """Another conversion starts anew, and two at once give one folder."""
    from ppdet_lite.assembly import zoo

    small_detector(site, monkeypatch, PPDET)
    convert = zoo.convert_file

    def killed(*arguments: object, **named: object) -> None:
        convert(*arguments, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(zoo, "convert_file", killed)
    with pytest.raises(KeyboardInterrupt):
        zoo_folder(PPDET)
    converted = find_entry(PPDET).path.parent / "converted"
    assert list(converted.iterdir()) == []

    def raced(*arguments: object, **named: object) -> None:
        monkeypatch.setattr(zoo, "convert_file", convert)
        zoo_folder(PPDET)  # another process finishes first
        convert(*arguments, **named)

    monkeypatch.setattr(zoo, "convert_file", raced)
    assert [zoo_folder(PPDET)] == list(converted.iterdir())
