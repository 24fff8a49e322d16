"""The description of an export: written, read, and refused if invalid."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.deployment.description import DESCRIPTION, Description, from_folder, from_json
from ppdet_lite.modeling.postprocess import Postprocess
from tests.tiny import detector

CAFFE = Preprocess(
    600, 1000, (103.53, 116.28, 123.675), (1.0, 1.1, 1.2), channels="bgr", pixel_range=255, interpolation="cubic"
)


@pytest.fixture(scope="module")
def description() -> Description:
    return Description.from_trained(TrainedModel(detector(), ["cat", "dog", "naïve 猫"], [7, 3, 90], CAFFE, "nowhere"))


def test_the_preprocessing_is_for_a_graph_that_takes_rgb(description: Description) -> None:
    assert description.preprocess == replace(CAFFE, channels="rgb", mean=CAFFE.mean[::-1], std=CAFFE.std[::-1])
    assert description.postprocess == Postprocess(score_threshold=0.01, max_detections=30)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    theirs, ours = CAFFE.normalize(pixels), description.preprocess.normalize(pixels)
    np.testing.assert_array_equal(theirs[::-1], ours)
    assert Preprocess().with_rgb_input() == Preprocess()


def test_json_and_yaml_round_trip(description: Description, tmp_path: Path) -> None:
    assert from_json(description.to_json(), "there") == description
    assert description.to_json().isascii() and "\n" not in description.to_json()
    (tmp_path / DESCRIPTION).write_text(description.to_yaml(), encoding="utf-8")
    assert from_folder(tmp_path) == description
    content = yaml.safe_load(description.to_yaml())
    assert content["label_list"] == ["cat", "dog", "naïve 猫"] and "class_names" not in content["ppdet_lite"]
    assert content["Preprocess"][1]["mean"] == list(CAFFE.mean[::-1])
    assert {"class_names": content["label_list"], **content["ppdet_lite"]} == json.loads(description.to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("postprocess"), "there: postprocess: Field required; export the model again"),
        (lambda content: content["preprocess"].update(short_side="big"), "preprocess.short_side: Input should be a"),
        (lambda content: content["preprocess"].update(gamma=2.2), "has keys that version .* does not support"),
        (lambda content: content.update(masks=True), "has keys that version .* does not support"),
        (lambda content: content["category_ids"].pop(), "there: 3 class names but 2 category ids"),
    ],
)
def test_invalid_descriptions_are_refused(description: Description, change, message: str) -> None:
    content = json.loads(description.to_json())
    change(content)
    with pytest.raises(UserError, match=message) as told:
        from_json(json.dumps(content), "there")
    assert "\n" not in str(told.value)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there: its description is damaged"):
        from_json("{", "there")
    with pytest.raises(UserError, match=r"infer_cfg\.yml: cannot be read: No such file"):
        from_folder(tmp_path)
    for text, message in (
        ("a: [", "invalid YAML: "),
        ("- 1", "has no section ppdet_lite, another program wrote it"),
        ("label_list: [cat]", "has no section ppdet_lite"),
        ("ppdet_lite: {versions: {}}", "infer_cfg.yml: class_names: Input should be a valid list"),
    ):
        (tmp_path / DESCRIPTION).write_text(text)
        with pytest.raises(UserError, match=message) as told:
            from_folder(tmp_path)
        assert "\n" not in str(told.value)
