"""The problems that tools/check_data.py reports, and the files that --fix writes."""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppdet_lite.assembly.check_data import dataset_files
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.checking.boxes import measure, percentiles
from ppdet_lite.data.checking.check import check, check_set, report_lines
from ppdet_lite.data.checking.fix import check_file
from tests.data.conftest import CocoFiles

ROOT = Path(__file__).parents[2]
BCCD = ROOT.parent / "shared/data/bccd"


@pytest.fixture
def files(tmp_path):
    """Three images of 40x60 with one, two and no boxes, of all three classes, without problems."""
    made = CocoFiles(tmp_path / "set", [(40, 60)] * 3)
    made.add(0, [10, 5, 20, 10], 3, area=150)
    made.add(1, [0, 0, 30, 40], 7)
    made.add(1, [30, 10, 12.5, 8], 90)
    return made


def found_in(files):
    files.write()
    return check_set("data", str(files.images), str(files.json))


def counts(found):
    return {problem.kind: (problem.count, problem.total) for problem in found.problems}


def fixed(files, **options):
    """Repair, and return the check of the written file and its content."""
    files.write()
    before, output = files.json.read_bytes(), files.folder / "fixed.json"
    found = check_file(str(files.json), str(files.images), output, **options)
    assert files.json.read_bytes() == before
    return found.sets[0], json.loads(output.read_text())


def test_nothing_wrong(files, capsys):
    found = found_in(files)
    assert counts(found) == {"empty_kept": (1, 3)}
    left, content = fixed(files)
    assert content == files.content and counts(left) == {"empty_kept": (1, 3)}
    assert "repaired: 3 of 3 images and 3 of 3 annotations are in " in capsys.readouterr().out


def test_numbers(files):
    """Sides, aspects and shares by hand: boxes of 20x10, 30x40 and 12.5x8 in 60x40."""
    measured = measure(files.read())
    np.testing.assert_allclose(measured.sides, [200**0.5, 1200**0.5, 10])
    np.testing.assert_allclose(measured.aspects, [0.5, 4 / 3, 0.64], rtol=1e-6)
    np.testing.assert_allclose(measured.relative, np.sqrt([200, 1200, 100]) / 2400**0.5)
    assert measured.per_image.tolist() == [1, 2, 0] and measured.widths.tolist() == [60] * 3
    assert percentiles(measured.per_image) == {"least": 0, "5 %": 0.1, "median": 1, "95 %": 1.9, "most": 2}
    assert percentiles(np.array([])) is None


def test_boxes_that_are_nearly_the_same(files):
    """An IoU of 7.3 / 8 counts, one of 7.1 / 8 does not; nor do crowds and other images."""
    files.add(1, [30, 10, 12.5, 7.3], 90, id=50)
    files.add(1, [30, 10, 12.5, 7.1], 90, id=51)
    files.add(1, [0.5, 0, 30, 40], 3, id=52)
    files.add(1, [0, 0, 30, 40], 7, id=53, iscrowd=1)
    files.add(2, [0, 0, 30, 40], 7, id=54)
    found = found_in(files)
    assert counts(found) == {"box_twice": (2, 8), "box_of_two": (1, 8)}
    own, crossed = found.problems
    assert [example.annotation for example in own.examples] == [50, 51]
    assert own.examples[0].value == {"bbox": [30, 10, 12.5, 7.3], "as": 3, "there": [30, 10, 12.5, 8]}
    assert own.examples[1].value["as"] == 50  # 7.1 / 7.3 counts
    assert crossed.examples[0][:4] == (52, 101, None, "1.png") and crossed.examples[0].value["as"] == 2
    assert crossed.examples[0].value["classes"] == ["cat", "dog"]
    left, content = fixed(files)
    assert [record["id"] for record in content["annotations"]] == [1, 2, 3, 52, 53, 54]
    assert counts(left) == {"box_of_two": (1, 6)}


def test_image_files(files):
    """A missing, a damaged and a repeated file are reported, with the path that was tried, and removed by --fix."""
    for name in ("gone", "damaged", "again"):
        files.content["images"].append(files.content["images"][0] | {"id": len(name), "file_name": f"{name}.png"})
        shutil.copy(files.images / "0.png", files.images / f"{name}.png")
    (files.images / "gone.png").unlink()
    content = (files.images / "damaged.png").read_bytes()
    (files.images / "damaged.png").write_bytes(content[: len(content) // 2])
    files.content["annotations"].append(files.content["annotations"][0] | {"id": 9, "image_id": 7})
    found = found_in(files)
    assert counts(found) == {
        "file_missing": (1, 6),
        "image_damaged": (1, 6),
        "content_twice": (1, 6),
        "empty_kept": (3, 6),
    }
    by_kind = {problem.kind: problem.examples[0] for problem in found.problems}
    assert by_kind["file_missing"].image == 4 and by_kind["file_missing"].value == {"tried": f"{files.images}/gone.png"}
    assert by_kind["image_damaged"].file == "damaged.png"
    assert by_kind["content_twice"][1:5] == (5, None, "again.png", {"as": "0.png", "boxes": "different"})
    left, content = fixed(files)
    assert [image["id"] for image in content["images"]] == [100, 101, 102, 5]
    assert [record["id"] for record in content["annotations"]] == [1, 2, 3]
    assert counts(left) == {"content_twice": (1, 4), "empty_kept": (2, 4)}


def test_a_jpeg_that_is_damaged_in_its_middle(files):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    content = bytearray(cv2.imencode(".jpg", image)[1].tobytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"\xff\xd9" * 4
    (files.images / "0.png").write_bytes(content)
    assert counts(found_in(files))["image_damaged"] == (1, 3)


def test_sizes_against_the_files(files):
    """Swapped sizes are taken from the files. Other wrong sizes are kept, since either size may be the right one."""
    files.content["images"][2] |= {"width": 40, "height": 60}
    files.content["images"][0] |= {"width": 61}
    found = found_in(files)
    assert counts(found) == {"size_other": (1, 3), "size_swapped": (1, 3), "empty_kept": (1, 3)}
    assert found.problems[0].examples[0].value == {"width": 61, "height": 40, "file": "60x40"}
    left, content = fixed(files)
    assert [(image["width"], image["height"]) for image in content["images"]] == [(61, 40), (60, 40), (60, 40)]
    assert counts(left) == {"size_other": (1, 3), "empty_kept": (1, 3)}


def test_values_repaired_by_reading_are_written(files):
    """Loose values, spaces, backslashes, boxes beyond the image and without area, ids; other keys stay."""
    files.content["info"] = {"year": 2020}
    files.content["categories"] = [{"id": 3, "name": " cat "}, {"id": "7", "name": 5}, {"id": 90.0, "name": "cow"}]
    (files.images / "sub").mkdir()
    shutil.move(files.images / "2.png", files.images / "sub/2.png")
    files.content["images"][2] |= {"file_name": "sub\\2.png", "width": None, "license": 4}
    first, second, third = files.content["annotations"]
    first |= {"iscrowd": "0", "area": 0, "id": 0, "note": "kept"}
    second |= {"bbox": ["0", 0, 30, "40"], "image_id": "101", "area": 30.5}
    third.pop("bbox")
    third |= {"segmentation": [[30, 10, 42.5, 10, 42.5, 18]], "category_id": 90.0}
    files.content["annotations"] += [
        {"id": 2, "image_id": 102, "category_id": 3, "bbox": [50, 30, 20, 20], "area": 250, "iscrowd": 0},
        {"id": 8, "image_id": 102, "category_id": 3, "bbox": [5, 5, 0, 9], "area": 0, "iscrowd": 0},
        {"id": 9, "image_id": 102, "category_id": 7, "bbox": [0, 0, 60, 40], "iscrowd": True},
    ]
    left, content = fixed(files)
    assert left.problems == [] and content["info"] == {"year": 2020}
    assert content["categories"] == [{"id": 3, "name": "cat"}, {"id": 7, "name": "5"}, {"id": 90, "name": "cow"}]
    assert content["images"][2] == {"id": 102, "file_name": "sub/2.png", "height": 40, "width": 60, "license": 4}
    assert content["annotations"] == [
        {
            "id": 10,
            "image_id": 100,
            "category_id": 3,
            "bbox": [10, 5, 20, 10],
            "area": 200,
            "iscrowd": 0,
            "note": "kept",
        },
        {"id": 2, "image_id": 101, "category_id": 7, "bbox": [0, 0, 30, 40], "area": 30.5, "iscrowd": 0},
        {"id": 3, "image_id": 101, "category_id": 90, "bbox": [30, 10, 12.5, 8], "area": 50, "iscrowd": 0}
        | {"segmentation": [[30, 10, 42.5, 10, 42.5, 18]]},
        {"id": 11, "image_id": 102, "category_id": 3, "bbox": [50, 30, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 9, "image_id": 102, "category_id": 7, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 1},
    ]


def test_a_file_listed_twice_becomes_one_image(files):
    files.content["images"].append(files.content["images"][1] | {"id": 300})
    again = [dict(record, id=record["id"] + 20, image_id=300) for record in files.content["annotations"][1:]]
    files.content["annotations"] += [*again, dict(again[0], id=40, bbox=[40, 20, 10, 10], area=100)]
    assert counts(found_in(files))["file_twice"] == (1, 4)
    left, content = fixed(files)
    assert [(record["id"], record["image_id"]) for record in content["annotations"]] == [
        (1, 100),
        (2, 101),
        (3, 101),
        (40, 101),
    ]
    assert len(content["images"]) == 3 and counts(left) == {"empty_kept": (1, 3)}


def test_corners_given_as_boxes(files):
    """A tool that writes x1, y1, x2, y2: not clipped unasked."""
    for record in files.content["annotations"]:
        x, y, w, h = record["bbox"]
        record |= {"bbox": [x, y, x + w, y + h], "area": None}
    files.content["annotations"][1]["bbox"] = [20, 20, 50, 40]
    files.write()
    with pytest.raises(UserError, match=r"could be corners x1, y1, x2, y2.*add --corners if they are"):
        check_file(str(files.json), str(files.images), files.folder / "fixed.json")
    assert not (files.folder / "fixed.json").exists()
    _, content = fixed(files, corners=True)
    assert [record["bbox"] for record in content["annotations"]] == [
        [10, 5, 20, 10],
        [20, 20, 30, 20],
        [30, 10, 12.5, 8],
    ]
    assert [record["area"] for record in content["annotations"]] == [200, 600, 100]
    files.content["annotations"][0]["bbox"] = [30, 5, 20, 10]
    files.write()
    with pytest.raises(UserError, match=r"1 of 3 boxes have x2 < x1 or y2 < y1; the first: annotation 1: \[30"):
        check_file(str(files.json), str(files.images), files.folder / "fixed.json", corners=True)


def test_what_cannot_be_repaired(files, tmp_path):
    output = tmp_path / "fixed.json"
    files.write()
    os.link(files.json, tmp_path / "link.json")
    with pytest.raises(UserError, match="is the input file itself; choose another name"):
        check_file(str(files.json), str(files.images), tmp_path / "link.json")
    files.content["images"][1]["id"] = 1.5
    files.write()
    with pytest.raises(
        UserError,
        match=r"--fix: the file cannot be repaired .*: 1 of 3 images has an id .* not an integer: .*1\.5",
    ):
        check_file(str(files.json), str(files.images), output)
    files.content["images"][1]["id"] = 101
    files.content["extra"] = float("nan")
    files.write()
    with pytest.raises(UserError, match="has NaN or Infinity in a value that --fix does not repair; remove it"):
        check_file(str(files.json), str(files.images), output)
    files.json.write_text("{")
    with pytest.raises(UserError, match=r"cannot be repaired because it cannot be read: .* not JSON"):
        check_file(str(files.json), str(files.images), output)
    del files.content["extra"]
    files.write()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(UserError, match=r"no image of .* can be read in .*; correct the folder"):
        check_file(str(files.json), str(elsewhere), output)
    assert not output.exists()


def test_refused_annotations_do_not_hide_the_rest(files):
    files.content["annotations"][0]["image_id"] = 1.5
    files.content["annotations"][1]["category_id"] = "dog"
    files.add(2, [1, 1, 0, 4], 3)
    found = found_in(files)
    assert counts(found) == {
        "image": (1, 4),
        "category": (1, 4),
        "box_corners": (1, 2),
        "class_empty": (2, 3),
        "box_dropped": (1, 2),
        "empty_kept": (2, 3),
    }
    assert found.read.statistics.boxes.tolist() == [0, 0, 1]


def test_an_unreadable_file_is_reported_as_far_as_possible(files):
    files.content["images"][0]["id"] = 1.5
    files.content["annotations"][1]["category_id"] = "dog"
    found = found_in(files)
    assert counts(found) == {"image_id": (1, 3), "category": (1, 3)} and found.read is None
    lines = report_lines(check([found], lambda: None))
    assert lines[-1] == "  images and boxes were not checked: correct the problems above first"
    files.json.write_text("{")
    assert "not JSON" in check_set("data", str(files.images), str(files.json)).error


UNREADABLE = {
    "image_id": [1.5, None, 999, "x"],
    "category_id": [1.5, None, 999, [3]],
    "bbox": [None, [], [1, 2, 3], [1, 2, 3, "x"], "1,2,3,4", [1, 2, 3, [4]]],
    "iscrowd": [2, "maybe", []],
    "area": ["large", []],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in UNREADABLE.items() for value in values])
def test_unreadable_annotations_are_removed(files, key, value):
    """They are refused in the input; all others are repaired."""
    files.add(2, [1, 1, 5, 5], 3)
    files.content["annotations"][-1][key] = value
    if value is None:
        files.content["annotations"][-1].pop(key)
    files.content["annotations"].append(dict(files.content["annotations"][0], id=7, iscrowd="0", bbox=[50, 30, 20, 20]))
    assert found_in(files).problems[0].level == "refusal"
    left, content = fixed(files)
    assert [record["id"] for record in content["annotations"]] == [1, 2, 3, 7]
    assert content["annotations"][-1]["bbox"] == [50, 30, 10, 10] and counts(left) == {"empty_kept": (1, 3)}


def test_two_splits_together(files, tmp_path):
    """An image in both by content, whatever its name; classes with boxes in one alone."""
    val = CocoFiles(tmp_path / "val", [(40, 60), (40, 60)])
    (val.images / "1.png").write_bytes(cv2.imencode(".png", np.zeros((40, 60, 3), np.uint8))[1].tobytes())
    val.add(0, [1, 1, 9, 9], 3)
    for each in (files, val):
        each.write()
    sets = [check_set(n, str(f.images), str(f.json)) for n, f in (("train", files), ("val", val))]
    overlap, classes = check(sets, lambda: None).between
    assert (overlap.kind, overlap.count, overlap.total) == ("content_in_both", 1, 2)
    assert overlap.examples[0].file == f"{val.images}/0.png"
    assert overlap.examples[0].value == {"as": f"{files.images}/0.png", "boxes": "different"}
    assert (classes.kind, classes.count, classes.total) == ("class_one_split", 2, 3)
    assert classes.examples[0].value == {"class": "dog", "train": 1, "val": 0}


def test_the_parts_of_a_mixed_training_set(files, tmp_path):
    """A validation image is searched in all parts; boxes of a class are counted over all parts."""
    second, val = CocoFiles(tmp_path / "second", [(40, 60)]), CocoFiles(tmp_path / "val", [(40, 60)])
    shutil.copy(files.images / "1.png", second.images / "0.png")
    shutil.copy(files.images / "1.png", val.images / "0.png")
    second.add(0, [1, 1, 9, 9], 3)
    for category in (3, 7, 90):
        val.add(0, [category / 10, 1, 9, 9], category)
    for each in (files, second, val):
        each.write()
    train, part, held = ({"images": str(f.images), "annotations": str(f.json)} for f in (files, second, val))
    found = list(dataset_files({"train": {"parts": [train, part]}, "val": held}))
    assert [name for name, *_ in found] == ["train 1", "train 2", "val"] and found[1][1:] == tuple(part.values())
    checked = check([check_set(*each) for each in found], lambda: None)
    (overlap,) = checked.between
    assert overlap.examples[0].value["as"] == f"{files.images}/1.png" and overlap.total == 1
    assert "class_empty" not in checked.sets[1].kinds()


def test_what_training_refuses_is_the_verdict(files):
    found = found_in(files)

    def refuse():
        raise UserError("no")

    assert check([found], refuse).refusal == "no" and check([found], lambda: None).refusal is None
    (files.images / "0.png").write_bytes(b"no image")
    found = found_in(files)
    assert check([found], lambda: None).refusal.startswith(f"{files.json}: 1 of 3 files is damaged")
    assert check([found], lambda: None, skip_bad_images=True).refusal is None
    found.name = "val"
    assert check([found], lambda: None, skip_bad_images=True).refusal is not None


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["check_data.py", *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "tools/check_data.py"), run_name="__main__")
        except SystemExit as ended:
            return ended.code, capsys.readouterr()
        return 0, capsys.readouterr()

    return run


def test_the_command_on_files(files, run):
    files.write()
    code, printed = run(files.json, files.images)
    assert code == 0 and printed.out.endswith("training would accept it\n")
    (files.images / "0.png").unlink()
    code, printed = run(files.json, files.images)
    assert code == 2 and "  refusal: 1 of 3 images has no file at the expected path" in printed.out
    assert printed.err.startswith(f"error: training would refuse: {files.json}: 1 of 3 images has no file")
    code, printed = run(files.json, files.images, "--fix", files.folder / "fixed.json")
    assert code == 0 and CocoDataset(str(files.images), str(files.folder / "fixed.json")).image_ids.tolist() == [
        101,
        102,
    ]
    for wrong in ((files.json,), ("-c", "x.yml", files.json), (files.json, files.images, "--corners")):
        assert run(*wrong)[0] == 2


def test_the_command_on_a_config(files, run, tmp_path):
    """The verdict is that of training with the config's options, and names the config's place."""
    val = CocoFiles(tmp_path / "val", [(40, 60)])
    val.content["categories"] = val.content["categories"][:2]
    val.add(0, [1, 1, 9, 9], 3)
    for each in (files, val):
        each.write()
    sets = {"train": files, "val": val}
    options = [f"data.{name}.images={each.images}" for name, each in sets.items()]
    options += [f"data.{name}.annotations={each.json}" for name, each in sets.items()]
    code, printed = run("-c", ROOT / "configs/quickstart/shapes_r18_fpn.yml", "-o", *options)
    assert code == 2 and "training would refuse: " in printed.err and "missing in the file: cow" in printed.err
    assert "train: " in printed.out and "2 of 3 classes have boxes in only one split" in printed.out


@pytest.mark.skipif(not BCCD.is_dir(), reason="shared/data/bccd is not here")
def test_bccd(tmp_path):
    """One annotation without area in each split is reported, and removed by --fix, as are duplicates."""
    for split, total, twice in (("train", 2805, 4), ("val", 1138, 2)):
        found = check_set(split, str(BCCD / split), str(BCCD / f"{split}.json"))
        assert counts(found) == {"box_dropped": (1, total), "box_twice": (twice, total)}
        left = check_file(found.annotations, found.images, tmp_path / f"{split}.json").sets[0]
        assert left.problems == [] and left.read.statistics.boxes.sum() == total - 1 - twice
