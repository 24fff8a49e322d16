"""The config that is derived from a dataset: its numbers follow from the images and boxes, and training accepts it."""

import json
import logging
import re
from pathlib import Path

import pytest

from ppdet_lite.assembly import starter_config
from ppdet_lite.assembly.setup import load_config
from ppdet_lite.assembly.starter_config import derive_settings, write_starter_config
from ppdet_lite.config.checked_config import to_plain
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.training.data_fit import warn_about_fit


def dataset(
    folder: Path, images: int, size: tuple[int, int], sides: dict[str, float], each: int = 1, name: str = "train"
) -> CocoDataset:
    """Write a dataset of images (h, w) with `each` square boxes per class; no image file has to be read."""
    folder.mkdir(exist_ok=True)
    boxes = [(k, side) for k, side in enumerate(sides.values(), start=1) for _ in range(each)]
    annotations = [
        {"id": i * len(boxes) + n, "image_id": i, "category_id": k, "bbox": [1, 1, side, side], "area": side**2}
        for i in range(1, images + 1)
        for n, (k, side) in enumerate(boxes)
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "height": size[0], "width": size[1]} for i in range(1, images + 1)
        ],
        "annotations": [record | {"iscrowd": 0} for record in annotations],
        "categories": [{"id": k, "name": label} for k, label in enumerate(sides, start=1)],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return CocoDataset(str(folder), str(path))


@pytest.mark.parametrize(
    ("size", "side", "start", "short", "long"),
    [
        ((480, 640), 24, "random", 480, 704),  # 480 * 24 / 24, and (480 + 32) * 4 / 3 rounded up
        ((480, 640), 40, "zoo", 384, 576),  # 480 * 32 / 40
        ((480, 640), 200, "random", 320, 480),  # large objects: the least side of the base
        ((480, 640), 200, "zoo", 384, 576),
        ((480, 640), 4, "random", 800, 1120),  # small objects: the side of the recipes for COCO
        ((100, 100), 4, "random", 192, 320),  # no more than twice its size
        ((3000, 4000), 300, "zoo", 384, 576),
        ((400, 2000), 24, "random", 384, 1056),  # the longest side is 2.5 times the short one
    ],
)
def test_the_size_follows_from_the_smallest_objects(tmp_path, size, side, start, short, long):
    data = dataset(tmp_path, 10, size, {"large": 1.5 * side, "small": side})
    settings = derive_settings(data, data, start)
    assert (settings.short_side, settings.long_side) == (short, long)
    assert settings.ratio == pytest.approx(short / min(size))


@pytest.mark.parametrize(
    ("images", "start", "iterations", "batch_size", "evaluations"),
    [
        (160, "random", 1000, 4, 4),  # 25 epochs
        (160, "zoo", 640, 2, 4),  # 8 epochs
        (3, "random", 400, 3, 4),  # at least 1200 images, in batches of no more than the dataset
        (1, "zoo", 600, 1, 3),  # not more than a quarter of the images seen in training
        (1000, "random", 3000, 4, 3),  # 12 epochs
        (6000, "zoo", 18000, 2, 1),
    ],
)
def test_durations(tmp_path, images, start, iterations, batch_size, evaluations):
    train = dataset(tmp_path, images, (100, 100), {"a": 30})
    val = dataset(tmp_path, max(images, 10) if images >= 1000 else 40, (100, 100), {"a": 30}, name="val")
    settings = derive_settings(train, val, start)
    assert (settings.iterations, settings.batch_size) == (iterations, batch_size)
    assert settings.evaluations == evaluations and settings.warmup == min(iterations // 10, 1000)
    assert ("r50" in settings.base.recipe) == (images >= 5000)


def test_a_tenth_of_the_classes_is_ignored(tmp_path):
    sides = {f"class {k}": 20.0 + k for k in range(20)}
    data = dataset(tmp_path, 2, (200, 200), sides)
    assert derive_settings(data, data, "random").smallest[0] == "class 2"


@pytest.mark.parametrize("start", ["zoo", "random"])
@pytest.mark.parametrize("name", ["my: [set] #1", "plain"])
def test_training_accepts_it_and_check_data_finds_nothing(tmp_path, start, name, caplog):
    data = dataset(tmp_path / name, 60, (240, 320), {"a": 20, "b, c": 60}, each=70)
    path = write_starter_config(tmp_path / name, data, data, start)
    config = load_config(path)
    assert config["data"]["train"]["annotations"] == data.file and config["data"]["val"]["images"] == str(data.images)
    assert config["output"] == f"output/{name}" and config["model"]["postprocess"]["max_detections"] == 200
    assert config["train"]["evaluate_every"] == f"{150 if start == 'zoo' else 95} iterations"
    if start == "zoo":
        assert config["pretrain_weights"] == "zoo:ppdet/faster_rcnn_r34_fpn_1x_coco"
        zoo = load_config(config["pretrain_weights"])
        assert config["model"]["rpn"]["min_size"] == zoo["model"]["rpn"]["min_size"] == 1.0
        assert config["model"]["backbone"]["project_stage_2"]
        assert config["data"]["preprocess"]["interpolation"] == "cubic"
    else:
        assert config["pretrain_weights"] is None and config["model"]["backbone"]["norm"] == "bn"
    with caplog.at_level(logging.WARNING):
        warn_about_fit(config)
    assert caplog.messages == []


@pytest.mark.parametrize("many", [5000, 1])
def test_the_settings_are_those_of_the_initial_weights(tmp_path, many, monkeypatch):
    monkeypatch.setattr(starter_config, "MANY_IMAGES", many)
    data = dataset(tmp_path, 4, (240, 320), {"a": 30})
    config = load_config(write_starter_config(tmp_path, data, data, "zoo"))
    zoo = load_config(config["pretrain_weights"])
    assert ("r50" in config["pretrain_weights"]) == (many == 1)
    ours, theirs = to_plain(config), to_plain(zoo)
    assert ours["model"] == theirs["model"]
    sides = {key: ours["data"]["preprocess"][key] for key in ("short_side", "long_side")}
    assert ours["data"]["preprocess"] == theirs["data"]["preprocess"] | sides


def test_objects_are_needed(tmp_path):
    data = dataset(tmp_path, 2, (64, 64), {"a": 30}, each=0)
    with pytest.raises(UserError, match="no image has objects"):
        derive_settings(data, data, "random")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["schedule.warmup_iterations=300"], "warm-up of 300 iterations takes most of the training of 380"),
        (["schedule.warmup_iterations=380"], "warm-up of 380 iterations is not over"),
        (["train.evaluate_every=381 iterations"], "evaluate_every: 381 iterations is longer than the training of 380"),
        (["train.length=2 epochs"], "only 30 iterations in 2 epochs of this dataset"),
        (["data.loader.batch_size=61"], "a step has 61 images"),
        (
            ["data.preprocess.short_side=96", "data.augment.short_sides=null"],
            "100% of the boxes are smaller than the smallest anchor, 16 pixels.*to about 128",
        ),
        (
            ["data.preprocess={short_side: 720, long_side: 1000}", "data.augment.short_sides=null"],
            "images are enlarged 3.0 times.*to 480 or less",
        ),
        (["data.augment.short_sides=[64]"], "training resizes short sides to 64..64"),
        (["model.postprocess.max_detections=69"], "60 of 60 images have more than 69 objects, up to 70"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, overrides, message, caplog):
    side = 25 if "enlarged" in message else 30
    data = dataset(tmp_path, 60, (240, 320), {"a": side}, each=70)
    path = write_starter_config(tmp_path, data, data, "random")
    with caplog.at_level(logging.WARNING):
        warn_about_fit(load_config(path, [*overrides]))
    assert any(re.search(message, text) for text in caplog.messages), caplog.messages
