"""What tools write otherwise than COCO: mended with its right value and a note, or refused with its place."""

import json

import cv2
import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.problems import DatasetError, Problem
from ppdet_lite.data.annotations.training_checks import training_problems


def told(problems: list[Problem]) -> dict[str, tuple[int, int]]:
    """Kind -> (count, total)."""
    return {problem.kind: (problem.count, problem.total) for problem in problems}


@pytest.mark.parametrize(
    ("value", "meant"),
    [("0", 0), ("false", 0), ("False ", 0), (0.0, 0), (False, 0), ("1", 1), ("true", 1), (1.0, 1), (True, 1)],
)
def test_iscrowd_as_text_or_float(files, value, meant):
    files.content["annotations"][0]["iscrowd"] = value
    dataset = files.read()
    assert dataset.annotations(0).is_crowd.tolist() == [bool(meant), False]
    assert told(dataset.problems)["crowd_text"] == (1, 3)


@pytest.mark.parametrize("value", ["null", "NaN"])
def test_iscrowd_left_open(files, value):
    files.write()
    files.json.write_text(files.json.read_text().replace('"iscrowd": 0', f'"iscrowd": {value}', 1))
    dataset = CocoDataset(str(files.images), str(files.json))
    assert not dataset.annotations(0).is_crowd.any() and told(dataset.problems) == {"crowd_missing": (1, 3)}


@pytest.mark.parametrize(
    "write", [str, float, lambda n: f"{n}.0", lambda n: f" {n} "], ids=["1", "1.0", "'1.0'", "' 1 '"]
)
def test_whole_numbers_as_text_or_float(files, write):
    plain = files.read()
    for name, keys in {
        "images": ("id", "width", "height"),
        "categories": ("id",),
        "annotations": ("id", "image_id", "category_id"),
    }.items():
        for record in files.content[name]:
            record.update({key: write(record[key]) for key in keys})
    dataset = files.read()
    assert dataset.ground_truth() == plain.ground_truth()
    assert told(dataset.problems) == {"image_number": (2, 2), "category_number": (3, 3), "number": (3, 3)}


def test_text_as_numbers_of_boxes(files):
    files.content["annotations"][0].update(bbox=["1", " 2.0", "3e1", 20], area="300")
    dataset = files.read()
    assert dataset.annotations(0).boxes[0].tolist() == [1, 2, 31, 22]
    assert dataset.ground_truth()["annotations"][0]["area"] == 300 and told(dataset.problems) == {"bbox_text": (1, 3)}


def test_boxes_from_segmentations(files):
    from pycocotools import mask

    filled = np.zeros((40, 60), np.uint8, order="F")
    filled[10:25, 20:50] = 1  # x 20, y 10, 30 wide, 15 high
    compressed = mask.encode(filled)
    column_wise = filled.reshape(-1, order="F")
    ends = np.flatnonzero(np.diff(column_wise)) + 1
    runs = np.diff([0, *ends.tolist(), column_wise.size]).tolist()
    polygons = [[3, 4, 9, 4, 9, 8], [1.5, 5, 2, 5, 2, 6]]  # x 1.5 to 9, y 4 to 8
    first, second, third = files.content["annotations"]
    first.update(bbox=None, segmentation={"size": [40, 60], "counts": compressed["counts"].decode()})
    second.update(bbox=[], segmentation={"size": [40, 60], "counts": runs})
    third.update(segmentation=polygons)
    del third["bbox"]
    dataset = files.read()
    assert dataset.annotations(0).boxes.tolist() == [[20, 10, 50, 25]] * 2
    assert dataset.annotations(1).boxes.tolist() == [[1.5, 4, 9, 8]]
    assert told(dataset.problems) == {"bbox_from_mask": (3, 3)}


def test_a_category_without_boxes(files):
    """As Roboflow writes it; it would become a class."""
    files.content["categories"].append({"id": 0, "name": "animals", "supercategory": "none"})
    dataset = files.read()
    assert dataset.class_names[0] == "animals" and dataset.problems == []
    (problem,) = training_problems(dataset)
    assert (problem.kind, problem.level, problem.count, problem.total) == ("class_empty", "warning", 1, 4)
    assert "drop_empty_classes" in str(problem) and "category 0: animals" in str(problem)
    dropped = files.read(drop_empty_classes=True)
    assert dropped.class_names == ["cat", "dog", "cow"] and dropped.category_ids.tolist() == [3, 7, 90]
    assert told(dropped.problems) == {"class_dropped": (1, 4)} and training_problems(dropped) == []
    matched = files.read(class_names=["cat", "dog", "cow"])  # a validation file has it too
    assert matched.annotations(0).classes.tolist() == [0, 1] and told(matched.problems) == {"class_unused": (1, 4)}


def test_boxes_of_a_class_that_training_leaves_out(files):
    with pytest.raises(UserError, match=r"only in the file: cow; .*drop_empty_classes: true leaves out those only in"):
        files.read(class_names=["cat", "dog"])
    dataset = files.read(class_names=["cat", "dog"], drop_empty_classes=True)
    assert dataset.annotations(1).boxes.shape == (0, 4) and told(dataset.problems)["class_left_out"] == (1, 3)


def test_class_names(files):
    files.content["categories"][0]["name"], files.content["categories"][1]["name"] = " dog\t", 3
    dataset = files.read()
    assert dataset.class_names == ["3", "dog", "cow"]
    assert told(dataset.problems) == {"name_spaces": (1, 3), "name_number": (1, 3)}


@pytest.mark.parametrize("area", [0, None, -1, 0.0])
def test_areas_that_say_nothing(files, area):
    for record in files.content["annotations"]:
        record["area"] = area
    dataset = files.read()
    assert [a["area"] for a in dataset.ground_truth()["annotations"]] == [600, 56, 81]
    assert told(dataset.problems) == {"area_missing": (3, 3)}


def test_swapped_sizes_that_boxes_show(files):
    files.content["images"][0].update(width=40, height=60)
    files.content["annotations"][0]["bbox"] = [1, 2, 50, 20]  # beyond a width of 40
    dataset = files.read()
    assert dataset.sizes.tolist() == [[40, 60], [40, 60]] and dataset.load(0).shape == (40, 60, 3)
    assert dataset.annotations(0).boxes[0].tolist() == [1, 2, 51, 22]  # not clipped
    assert told(dataset.problems) == {"size_swapped": (1, 2)}


def test_swapped_sizes_that_only_files_show(files, monkeypatch):
    files = type(files)(files.folder / "more", [(40, 60)] * 5)
    for number, image in enumerate(files.content["images"]):
        image.update(width=40, height=60)
        files.add(number, [1, 1, 30, 30])
    dataset = files.read()
    assert dataset.problems == []
    monkeypatch.setattr("ppdet_lite.data.annotations.dataset.SAMPLED_HEADERS", 2)
    dataset.check_images()
    assert dataset.sizes.tolist() == [[40, 60]] * 5 and told(dataset.problems) == {"size_swapped": (5, 5)}


def test_sizes_from_the_files(files):
    files.content["images"][0].pop("width")
    files.content["images"][1].update(width=None, height=0)
    dataset = files.read()
    assert dataset.sizes.tolist() == [[40, 60]] * 2 and told(dataset.problems) == {"size_missing": (2, 2)}
    (files.images / "1.png").unlink()
    with pytest.raises(
        DatasetError, match=r"1 of 2 images has no width or height and no readable file.* image 101 \(1.png\)"
    ):
        files.read()


def test_sizes_of_other_images(files):
    files.content["images"][1].update(width=30, height=20)
    dataset = files.read()
    with pytest.raises(
        DatasetError, match=r'1 of 2 images has a size that differs.* 101 \(1.png\): {"width": 30, "height": 20, '
    ):
        dataset.check_images()


def test_images_that_loading_may_skip_are_told_only(files):
    files = type(files)(files.folder / "more", [(40, 60)] * 3)
    files.add(0, [1, 1, 30, 30])
    (files.images / "0.png").unlink()
    files.content["images"][1].update(width=30, height=20)
    files.content["images"][2].update(width=40, height=60)
    dataset = files.read(keep_empty=True)
    dataset.check_images(strict=False)
    kinds = told(dataset.problems)
    assert (kinds["file_missing"], kinds["size_other"], kinds["size_swapped"]) == ((1, 3), (1, 3), (1, 3))
    assert dataset.sizes.tolist() == [[40, 60], [20, 30], [40, 60]]  # other sizes stay, for loading to refuse
    with pytest.raises(UserError, match=r"1\.png is 60x40"):
        dataset.load(1)


def test_a_file_under_two_ids(files):
    files.content["images"][1]["file_name"] = "0.png"
    dataset = files.read()
    (problem,) = dataset.problems
    assert (problem.kind, problem.count, problem.total) == ("file_twice", 1, 2)
    assert problem.examples[0].image == 101 and problem.examples[0].file == "0.png"


def test_backslashes(files):
    (files.images / "day").mkdir()
    (files.images / "0.png").rename(files.images / "day" / "0.png")
    files.content["images"][0]["file_name"] = "day\\0.png"
    dataset = files.read()
    assert dataset.load(0).shape == (40, 60, 3) and told(dataset.problems) == {"file_name_backslash": (1, 2)}
    dataset.check_images()


def test_a_folder_named_twice(files):
    files.content["images"][0]["file_name"] = "images/0.png"
    files.content["images"][1]["file_name"] = "nowhere/1.jpg"
    with pytest.raises(DatasetError) as caught:
        files.read().check_images()
    assert str(caught.value).startswith(f"{files.json}: 2 of 2 images have no file")
    assert [example.value for example in caught.value.problems[-1].examples] == [
        {"tried": str(files.images / "images" / "0.png"), "it is at": str(files.images / "0.png")},
        {"tried": str(files.images / "nowhere" / "1.jpg")},
    ]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
def test_other_encodings(files, encoding):
    files.content["categories"][0]["name"] = "Hündin"
    files.json.write_bytes(json.dumps(files.content, ensure_ascii=False).encode(encoding))
    dataset = CocoDataset(str(files.images), str(files.json))
    assert dataset.class_names == ["cat", "Hündin", "cow"]
    assert [problem.kind for problem in dataset.problems] == ([] if encoding == "utf-8-sig" else ["encoding"])


def test_a_jpeg_damaged_in_the_middle(files):
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8), (5, 5), 0)
    content = bytearray(cv2.imencode(".jpg", pixels)[1].tobytes())
    content[len(content) // 2 :] = bytes(100) + b"\xff\xd9"
    (files.images / "0.jpg").write_bytes(content)
    files.content["images"][0]["file_name"] = "0.jpg"
    with pytest.raises(UserError, match=r"0.jpg cannot be decoded .*Corrupt JPEG data.* \(image id 100 in"):
        files.read().load(0)


def test_corners_given_as_boxes(files):
    files = type(files)(files.folder / "more", [(40, 60)])
    for place in range(20):
        files.add(0, [place, 0, place + 10, 10] if place else [59, 39, 60, 40])
    assert told(files.read().problems) == {"box_clipped": (1, 20)}  # one in twenty may be a slip
    for record in files.content["annotations"][:19]:
        record["bbox"] = [50, 30, 55, 38]
    problem = files.read().problems[-1]
    assert (problem.kind, problem.level, problem.count, problem.total) == ("box_corners", "warning", 19, 20)
    assert "is bbox x1, y1, x2, y2" in str(problem) and str(problem).startswith("19 of 20 boxes")


def test_nothing_to_learn(files):
    for record in files.content["annotations"]:
        record["iscrowd"] = 1
    (problem,) = training_problems(files.read())
    assert (problem.kind, problem.level, problem.count, problem.total) == ("boxes_none", "refusal", 2, 2)
    files.content["annotations"] = []
    assert told(training_problems(files.read())) == {"boxes_none": (2, 2)}
