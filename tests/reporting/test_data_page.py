"""The page of a data check contains all problems and is self-contained."""

import base64
import csv
import json
import re
from html import unescape

import cv2
import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.checking.check import Check, check, check_set
from ppdet_lite.data.images.drawing import GAP
from ppdet_lite.reporting.data_page import _examples, write_report
from tests.data.conftest import CocoFiles


@pytest.fixture
def report(tmp_path):
    """Write a report of datasets; return the page without embedded data, the types of its images, and the JSON."""

    def write(files, training=lambda: None):
        for each in files.values():
            each.write()
        found = check([check_set(name, str(f.images), str(f.json)) for name, f in files.items()], training)
        write_report(found, tmp_path / "report")
        assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
            "check.json",
            "index.html",
            "problems.csv",
        ]
        page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
        pictures = re.findall(r'src="(data:image/[a-z+]+);base64,', page)
        page = re.sub(r"data:[a-z+/]+;base64,[A-Za-z0-9+/=]+", "DATA", page)
        assert not re.search(r"https?:|<script |@import|url\(", page)
        assert set(re.findall(r'src="(.*?)"', page)) <= {"DATA"}
        return page, pictures, json.loads((tmp_path / "report/check.json").read_text())

    return write


def two_sets(folder):
    train = CocoFiles(folder / "train", [(40, 60), (30, 30), (20, 50)])
    train.content["categories"] = [{"id": 3, "name": "<b>cat$"}, {"id": 7, "name": "dog"}]
    train.add(0, [10, 5, 20, 10], 3)
    train.add(0, [10, 5, 20, 10], 3)
    train.add(1, [29, 29, 0, 0], 7)
    val = CocoFiles(folder / "val", [(40, 60)])
    val.content["categories"] = train.content["categories"]
    val.add(0, [1, 1, 9, 9], 7)
    return {"train": train, "val": val}


def test_a_page_of_two_sets(tmp_path, report):
    page, pictures, content = report(two_sets(tmp_path))
    assert "Training would accept this." in page and "<b>cat" not in page
    text = " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())
    for expected in (
        "warning 1 of 3 boxes is nearly equal to an earlier box of the same class: both are trained on",
        "note 1 of 3 boxes has no finite area inside the image: dropped",
        "annotation 3 of image 101 (1.png)",
        "2 of 2 classes have boxes in only one split",
        "1 of 1 file is in both splits",
        f"Identical images, boxes: different; left {tmp_path}/train/images/0.png, right {tmp_path}/val/images/0.png",
        "<b>cat$ 2 100.0 % 0 0.0 %",
    ):
        assert expected in text, expected
    # five charts; the repeated box, that without area twice (might it be corners?), two images without objects, the
    # image of both splits, and one image with boxes of each set
    assert sorted(pictures) == ["data:image/jpeg"] * 8 + ["data:image/svg+xml"] * 5
    assert content["refusal"] is None and content["sets"]["train"]["statistics"]["boxes"] == {"<b>cat$": 2, "dog": 0}
    kinds = [problem["kind"] for problem in content["sets"]["train"]["problems"]]
    assert kinds == ["box_corners", "box_twice", "class_empty", "box_dropped", "empty_kept"]
    assert content["sets"]["val"]["problems"] == []
    assert content["sets"]["train"]["problems"][1]["examples"][0]["value"]["as"] == 1
    assert [problem["kind"] for problem in content["between"]] == ["content_in_both", "class_one_split"]
    assert content["sets"]["val"]["distributions"]["sides"]["median"] == 9


def test_both_pictures_of_a_pair_are_shown(tmp_path):
    """Side by side: the left one has a box, the right one has none."""
    files = CocoFiles(tmp_path / "set", [(40, 60), (40, 60)])
    (files.images / "1.png").write_bytes((files.images / "0.png").read_bytes())
    files.add(0, [5, 5, 30, 20], 3)
    files.write()
    found = check([check_set("data", str(files.images), str(files.json))], lambda: None)
    (problem,) = [problem for problem in found.sets[0].problems if problem.kind == "content_twice"]
    (figure,) = _examples(found, problem)
    assert figure.caption == "Identical images, boxes: different; left 0.png, right 1.png"
    content = base64.b64decode(figure.url.split(",")[1])
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    height, width = pixels.shape[:2]
    assert width == 2 * (width - GAP) // 2 + GAP and (width - GAP) // 2 == round(height * 60 / 40)
    left, right = pixels[:, : (width - GAP) // 2], pixels[:, (width + GAP) // 2 :]
    is_different = np.abs(left.astype(int) - right).max(axis=2) > 60
    assert (
        is_different[: height * 25 // 40 + 4, : height * 35 // 40 + 4].any()
        and not is_different[height * 3 // 4 :, 16:].any()
    )


def test_a_page_of_refused_annotations(tmp_path, report):
    files = CocoFiles(tmp_path / "set", [(40, 60)])
    files.content["images"][0]["id"] = 1.5

    def training():
        raise UserError("iscrowd & more")

    page, pictures, content = report({"data": files}, training)
    assert "Training would refuse this:</strong> iscrowd &amp; more" in page and pictures == []
    assert "Images and boxes were not checked: correct the problems above first." in page
    assert content["refusal"] == "iscrowd & more" and "statistics" not in content["sets"]["data"]


@pytest.mark.parametrize("image", [[100], 1.5, 100])
def test_examples_with_invalid_boxes_and_images(tmp_path, report, image):
    files = CocoFiles(tmp_path / "set", [(40, 60)])
    files.add(0, [1, 1, 9, 9], 3)
    for box in (["wide", 1, 2, 3], [1, 2, 3], [1e300, 0, 5, 5], [-900, 5, 9, 0], {"x": 1}):
        files.content["annotations"].append({"id": 2, "image_id": image, "category_id": 3, "bbox": box})
    page, _, content = report({"data": files})
    assert "of 6</strong> annotations have" in page and content["sets"]["data"]["statistics"]["boxes"]["cat"] == 1


def test_a_page_without_any_box(tmp_path, report):
    page, pictures, _ = report({"data": CocoFiles(tmp_path / "set", [(40, 60)])})
    assert "no boxes other than crowd regions" in page and set(pictures) == {"data:image/jpeg"}


def test_a_report_that_cannot_be_written(tmp_path):
    files = CocoFiles(tmp_path / "set", [(40, 60)])
    files.write()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(check([check_set("data", str(files.images), str(files.json))], lambda: None), tmp_path / "file")


def test_every_fault_is_in_the_table(tmp_path):
    """Also those beyond the first five, with the value as the file has it; nothing wrong leaves the heading alone."""
    files = CocoFiles(tmp_path / "data", [(40, 60)])
    for k in range(8):
        files.add(0, [50, 10, 20, 10 + k], 3)
    files.write()
    found = check([check_set("train", str(files.images), str(files.json))], lambda: None)
    write_report(found, tmp_path / "report")
    rows = list(csv.DictReader((tmp_path / "report/problems.csv").open(encoding="utf-8")))
    clipped = [row for row in rows if row["kind"] == "box_clipped"]
    assert [int(row["annotation"]) for row in clipped] == [record["id"] for record in files.content["annotations"]]
    assert [json.loads(row["value"])["bbox"] for row in clipped] == [[50, 10, 20, 10 + k] for k in range(8)]
    assert {(row["set"], row["level"], row["image"], row["file"]) for row in clipped} == {
        ("train", "note", "100", "0.png")
    }
    assert len(found.as_json()["sets"]["train"]["problems"][0]["examples"]) == 5
    assert len(CocoDataset(str(files.images), str(files.json)).problems[0].occurrences) == 5  # as training keeps them

    write_report(Check([]), tmp_path / "nothing")
    assert (tmp_path / "nothing/problems.csv").read_text() == (
        "set,level,kind,annotation,image,category,file,value,number,what\n"
    )


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path, report, value):
    files = two_sets(tmp_path)["train"]
    files.content["annotations"][0]["bbox"] = [5, value, 20, 30]
    _, _, numbers = report({"train": files})
    (dropped,) = (each for each in numbers["sets"]["train"]["problems"] if each["kind"] == "box_dropped")
    assert dropped["examples"][0]["value"]["bbox"] == [5, None, 20, 30]


def test_text_that_is_not_unicode(tmp_path, report):
    """A surrogate is written as an escape."""
    files = two_sets(tmp_path)["train"]
    files.content["categories"] = [{"id": 3, "name": "x\ud800"}, {"id": 7, "name": "dog"}]
    assert "\\ud800" in report({"train": files})[0]


def test_an_elongated_image(tmp_path, report):
    """A side of its thumbnail would be less than a pixel."""
    files = CocoFiles(tmp_path / "train", [(2, 1500)])
    files.add(0, [0, 0, 1500, 2], 3)
    _, pictures, _ = report({"train": files})
    assert pictures
