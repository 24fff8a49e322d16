"""Boxes that are probably not what they say: fractions, another scale, flags that other tools interpret."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.evaluation_checks import evaluation_problems
from ppdet_lite.data.checking.check import check, check_for_training, check_set, report_lines

ROOT = Path(__file__).parents[2]
FRACTIONS = {
    "x, y, width, height": [[0.1, 0.2, 0.5, 0.5], [0, 0, 1, 1]],
    "corners": [[0.1, 0.2, 0.6, 0.7], [0.5, 0.5, 1, 1]],
    "center": [[0.5, 0.5, 1, 1], [0.35, 0.45, 0.5, 0.5]],
    "rounded over the border": [[-0.002, 0.1, 1.003, 0.8]],
    "a truncated object among many": [[0.1, 0.2, 0.5, 0.5]] * 19 + [[-0.3, 0.2, 1.6, 0.5]],
    "one without area": [[0.1, 0.2, 0.5, 0.5], [0, 0, 0, 0]],
}


def problems_of(dataset):
    return {problem.kind: (problem.level, problem.count, problem.total) for problem in dataset.problems}


@pytest.mark.parametrize("as_text", [False, True], ids=["usual", "repaired"])
@pytest.mark.parametrize("boxes", FRACTIONS.values(), ids=FRACTIONS)
def test_fractions_are_refused(coco_files, boxes, as_text):
    files = coco_files([(40, 60)])
    for box in boxes:
        files.add(0, box)
    if as_text:  # the file is then read record by record
        files.content["images"][0]["id"] = "100"
    with pytest.raises(UserError) as refused:
        files.read()
    message = str(refused.value)
    assert message.startswith(f"{files.json}: ") and "\n" not in message
    assert "only values from 0 to 1: are they fractions of the image's size? convert to pixels" in message
    arguments = str(files.images), str(files.json)
    found = check([check_set("data", *arguments)], lambda: check_for_training(*arguments))
    assert found.refusal == message and "box_fractions" in found.sets[0].kinds()
    assert any("are they fractions of the image's size?" in line for line in report_lines(found))


def test_some_fractions_among_pixels_are_reported(coco_files):
    files = coco_files([(40, 60)])
    for box in [[0.1, 0.2, 0.5, 0.5], [10, 5, 20, 30]]:
        files.add(0, box)
    assert problems_of(files.read()) == {"box_fraction": ("warning", 1, 2)}


@pytest.mark.parametrize("box", [[0, 0, 2, 1], [1, 1, 1, 1.5], [3, 0, 1, 1]])
def test_tiny_boxes_in_pixels_are_kept(coco_files, box):
    files = coco_files([(40, 60)])
    files.add(0, box)
    assert problems_of(files.read()) == {}


def test_an_image_of_a_pixel_has_boxes_of_a_pixel(coco_files):
    files = coco_files([(1, 1)])
    files.add(0, [0, 0, 1, 1])
    assert problems_of(files.read()) == {}


@pytest.mark.parametrize(("scale", "reported"), [(100, True), (140, True), (160, False), (300, False)])
def test_percentages_and_boxes_of_smaller_images(coco_files, scale, reported):
    """An image of 300x600 whose boxes are spread over `scale` pixels in both directions."""
    files = coco_files([(300, 600)])
    for i in range(20):
        files.add(0, [scale / 20 * i, scale / 20 * i, scale / 20, scale / 20])
    found = problems_of(files.read())
    assert found == ({"box_scale": ("warning", 20, 20)} if reported else {})


def test_a_few_boxes_may_be_in_a_corner(coco_files):
    files = coco_files([(300, 600)])
    for i in range(19):
        files.add(0, [i, i, 10, 10])
    assert problems_of(files.read()) == {}


@pytest.mark.parametrize("as_text", [False, True], ids=["usual", "repaired"])
def test_ignore_is_reported_and_has_no_effect(coco_files, as_text):
    """pycocotools overwrites `ignore` by iscrowd; mmdetection leaves such boxes out, detectron2 refuses them."""
    files = coco_files([(40, 60)])
    for value in (1, True, "1", 0, False, None, "0"):
        files.add(0, [10, 5, 20, 30])
        files.content["annotations"][-1]["ignore"] = value
    files.add(0, [0, 0, 20, 30], iscrowd=1, ignore=1)
    files.add(0, [30, 0, 20, 30])
    if as_text:
        files.content["images"][0]["id"] = "100"
    dataset = files.read()
    assert problems_of(dataset)["box_ignored"] == ("warning", 3, 9)
    assert dataset.annotations(0).is_crowd.tolist() == [False] * 7 + [True, False]
    (problem,) = [problem for problem in dataset.problems if problem.kind == "box_ignored"]
    assert str(problem).startswith(
        "3 of 9 boxes have ignore: 1: used as without it, as pycocotools does; iscrowd: 1 excludes them; the first: "
        "annotation 1 of image 100 (0.png)"
    )
    assert "box_ignored" in check_set("data", str(files.images), str(files.json)).kinds()


@pytest.mark.parametrize("as_text", [False, True], ids=["usual", "repaired"])
def test_a_rotation_from_cvat_is_reported(coco_files, as_text):
    files = coco_files([(40, 60)])
    attributes = [{"rotation": 30.5}, {"rotation": "30"}, {"rotation": 0.0}, {"occluded": False}, ["a"], None, 360]
    for value in attributes:
        files.add(0, [10, 5, 20, 30], attributes=value)
    if as_text:
        files.content["images"][0]["id"] = "100"
    assert problems_of(files.read())["box_rotated"] == ("warning", 2, 7)
    assert "box_rotated" in check_set("data", str(files.images), str(files.json)).kinds()


def test_more_objects_of_a_class_than_coco_counts(coco_files):
    """Only the first image has more than 100 objects of a class that are no crowd regions."""
    files = coco_files([(40, 60)] * 4)
    counts = [(0, 3, 101, 0), (0, 7, 5, 0), (1, 3, 100, 0), (1, 7, 100, 0), (2, 90, 50, 0), (2, 90, 80, 1)]
    for image, category, count, crowd in counts:
        for i in range(count):
            files.add(image, [10 + i / 10, 5, 20, 30], category, iscrowd=crowd)
    (problem,) = evaluation_problems(files.read())
    assert str(problem).startswith("1 of 4 images has more than 100 objects of a class: COCO counts 100 detections")
    assert "image 100" in str(problem) and "101 objects" in str(problem)
    sets = {name: check_set(name, str(files.images), str(files.json)) for name in ("data", "train", "val", "val 2")}
    assert {name: "objects_many" in found.kinds() for name, found in sets.items()} == {
        "data": True, "train": False, "val": True, "val 2": True,
    }  # fmt: skip


def test_the_command_reports_them_all(coco_files, monkeypatch, capsys):
    files = coco_files([(40, 60)])
    files.add(0, [10, 5, 20, 30], ignore=1, attributes={"rotation": 45})
    files.add(0, [0.1, 0.2, 0.5, 0.5])
    for i in range(101):
        files.add(0, [10 + i / 10, 0, 20, 30])
    files.write()
    monkeypatch.setattr(sys, "argv", ["check_data.py", str(files.json), str(files.images)])
    runpy.run_path(str(ROOT / "tools/check_data.py"), run_name="__main__")
    out = capsys.readouterr().out
    for line in (
        "warning: 1 of 103 boxes has ignore: 1: ",
        "warning: 1 of 103 boxes has a rotation (CVAT's attributes.rotation): ",
        "warning: 1 of 103 boxes has only values from 0 to 1: are they fractions",
        "warning: 1 of 1 image has more than 100 objects of a class: ",
    ):
        assert f"  {line}" in out, out
    assert json.loads(files.json.read_text()) == files.content
