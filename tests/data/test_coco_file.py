"""Annotation files: what is decoded by its types is what is read object by object."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations import coco_file, json_lists, repair
from ppdet_lite.data.annotations.annotation_records import AnnotationRecord, SeparatedAnnotations
from ppdet_lite.data.annotations.coco_file import read_coco
from ppdet_lite.data.annotations.problems import DatasetError, keep_all_occurrences
from ppdet_lite.data.annotations.repair import read_with_repairs

COCO_TINY = Path(__file__).parents[3] / "shared" / "data" / "coco_tiny"


def content(**changes: Any) -> dict[str, Any]:
    """Two images, two categories out of order, three annotations with all that may be left out left out in turn."""
    return {
        "info": {"year": 2026},
        "images": [
            {"id": 9, "file_name": "a.jpg", "height": 40, "width": 60, "license": 3},
            {"id": 4, "file_name": "b.jpg", "height": 30, "width": 20},
        ],
        "categories": [{"id": 7, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "cat"}],
        "annotations": [
            {"id": 1, "image_id": 9, "category_id": 3, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 1},
            {"id": 2, "image_id": 4, "category_id": 7, "bbox": [0.5, 1.5, 2, 2], "segmentation": [[1, 2, 3]]},
            {"image_id": 4, "category_id": 7, "bbox": [1, 1, 2, 2], "area": None, "iscrowd": None},
        ],
    } | changes


def written(path: Path, value: dict[str, Any]) -> str:
    path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def assert_same(one: coco_file.CocoFile, other: coco_file.CocoFile) -> None:
    for name, value in one._asdict().items():
        if name != "annotations":
            assert np.array_equal(value, getattr(other, name)), name
    for name, value in one.annotations._asdict().items():
        np.testing.assert_array_equal(value, getattr(other.annotations, name), err_msg=name)


def test_both_ways_of_reading_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.json", content())
    slow = read_with_repairs(path)
    monkeypatch.setattr(coco_file, "read_with_repairs", lambda *_: pytest.fail("a good file was read twice"))
    fast = read_coco(path)
    assert_same(fast, slow)
    assert (fast.class_names, fast.category_ids) == (["cat", "dog"], [3, 7])
    assert fast.image_ids.tolist() == [9, 4] and fast.sizes.tolist() == [[40, 60], [30, 20]]
    records = fast.annotations
    assert records.is_crowd.tolist() == [True, False, False] and records.ids == [1, 2, None]
    assert records.has_crowd_flag.tolist() == [True, False, False] and fast.problems == []
    assert records.xywh.tolist() == [[1, 2, 3, 4], [0.5, 1.5, 2, 2], [1, 1, 2, 2]]
    np.testing.assert_array_equal(records.areas, [12, np.nan, np.nan])


def test_no_annotations_at_all(tmp_path: Path) -> None:
    found = read_coco(written(tmp_path / "a.json", content(annotations=[])))
    assert found.annotations.xywh.shape == (0, 4) and found.annotations.image_ids.dtype == np.int64


@pytest.mark.skipif(not COCO_TINY.exists(), reason="no coco_tiny here")
def test_both_ways_agree_on_real_files() -> None:
    for path in sorted(COCO_TINY.rglob("*.json")):
        assert_same(read_coco(str(path)), read_with_repairs(str(path)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"images": [{"id": True, "file_name": "a", "height": 1, "width": 1}]},
            "1 of 1 image has an id that is missing or not an integer.*: image true",
        ),
        (
            {"images": [{"id": 1, "file_name": "a", "height": 1.5, "width": 1}]},
            'an invalid width or height.*: image 1 .*"height": 1.5',
        ),
        ({"images": [{"id": 1, "file_name": "", "height": 1, "width": 1}]}, "no valid file_name.*: image 1: "),
        (
            {"images": [{"id": 1, "file_name": "a", "height": 1, "width": 2**31}]},
            "an invalid width or height.*: image 1 .*: 2147483648",
        ),
        ({"images": [{"id": 2**70, "file_name": "a", "height": 1, "width": 1}]}, "not an integer"),
        ({"images": []}, "its list of images is empty"),
        ({"categories": [{"id": 3, "name": " "}]}, 'unprintable name.*: category 3: {"name": " "}'),
        (
            {"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]},
            "1 of 2 categories has the id of an earlier category",
        ),
        ({"annotations": [{"image_id": 9, "category_id": 3, "bbox": [1, 2, 3]}]}, r"entry 1, image 9 .*\[1, 2, 3\]"),
        ({"annotations": [{"image_id": 9, "bbox": [1, 2, 3, 4]}]}, r"entry 1, image 9 \(a.jpg\): no category_id"),
        ({"annotations": None}, "it has no list of annotations"),
    ],
)
def test_faults_keep_their_place(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = written(tmp_path / "a.json", content(**changes))
    with pytest.raises(UserError, match=told) as caught:
        read_coco(path)
    assert str(caught.value).count(path) == 1


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe{\x00", b"[1]", b'{"images": ['])
def test_what_is_no_json_or_no_coco_file(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(UserError, match=r"are not JSON|is not a COCO detection file"):
        read_coco(str(tmp_path / "a.json"))


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content()).encode())
    assert read_coco(str(tmp_path / "a.json")).class_names == ["cat", "dog"]


def many(count: int) -> list[dict[str, Any]]:
    """Annotations that follow the format, most with keys that COCO does not define or that may be left out."""
    shared = {"segmentation": [[1, 2, 3, 4, 5, 6]], "iscrowd": 0, "ignore": 1, "attributes": {"rotation": 90.0}}
    records = [
        {"id": i + 1, "image_id": 9 - 5 * (i % 2), "category_id": 7, "bbox": [i % 7, 1.5, 3, 4], "area": 12.5} | shared
        for i in range(count)
    ]
    for i, key in enumerate(("id", "area", "iscrowd", "ignore", "attributes", "segmentation")):
        del records[i][key]
    return records


def test_only_annotations_with_a_fault_are_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: with one fault in COCO's 860001 annotations, reading all of them so takes ten times as long."""
    records = many(300)
    path = written(tmp_path / "good.json", content(annotations=records))
    good = read_coco(path)
    records[137]["category_id"] = "7"
    records[250]["bbox"][2] = "3"
    boxes, read_box = [], repair._box
    monkeypatch.setattr(repair, "_box", lambda *args: boxes.append(args) or read_box(*args))
    found = read_coco(written(tmp_path / "bad.json", content(annotations=records)))
    assert len(boxes) == 2
    assert_same(found._replace(problems=[]), good)
    assert [(problem.kind, problem.count, problem.total) for problem in found.problems] == [
        ("number", 1, 300),
        ("bbox_text", 1, 300),
    ]


def test_nan_in_one_annotation_leaves_the_others_fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN and Infinity in texts stay what they are, after escaped quotation marks and backslashes, too."""
    records = many(300)
    records[137]["area"] = float("nan")
    records[200]["bbox"] = [float("inf"), 1, float("-inf"), 1e308]
    records[201]["note"] = 'NaN, Infinity" NaN\\'
    images = content()["images"]
    images[0]["file_name"], images[1]["file_name"] = 'say "Infinity".jpg', "\\\\NaN.jpg"
    path = written(tmp_path / "a.json", content(annotations=records, images=images))
    boxes, read_box = [], repair._box
    monkeypatch.setattr(repair, "_box", lambda *args: boxes.append(args) or read_box(*args))
    found = read_coco(path)
    assert len(boxes) == 2 and found.problems == []
    assert found.file_names == [image["file_name"] for image in images]
    assert np.flatnonzero(np.isnan(found.annotations.areas)).tolist() == [1, 137]  # the second has no area
    assert found.annotations.xywh[200].tolist() == records[200]["bbox"]


FAULTS: list[tuple[str, Any]] = [
    ("id", "12"), ("id", 3.0), ("id", True), ("id", [1]), ("id", 2**70), ("id", None),
    ("image_id", "9"), ("image_id", 4.0), ("image_id", None), ("image_id", 2**63), ("image_id", -(2**63)),
    ("category_id", " 7 "), ("category_id", True), ("category_id", 2**64), ("category_id", float("nan")),
    ("bbox", [1, 2, 3]), ("bbox", [1, "2", 3, 4]), ("bbox", [1, None, 3, 4]), ("bbox", [1, 2, 3, 10**30]),
    ("bbox", [1, 2, 3, 1e30]), ("bbox", []), ("bbox", None), ("bbox", {"x": 1}), ("bbox", [1, 2, True, 4]),
    ("bbox", [1, 2, float("nan"), 4]), ("bbox", [1, 2, float("inf"), 4]),
    ("area", "12"), ("area", True), ("area", 2**63), ("area", 1e300), ("area", float("nan")), ("area", "x"),
    ("iscrowd", True), ("iscrowd", "1"), ("iscrowd", 1.0), ("iscrowd", 2), ("iscrowd", float("nan")), ("iscrowd", None),
    ("ignore", "0"), ("attributes", {"rotation": "45"}), ("attributes", {"\ud800": 1}), ("segmentation", "\ud800"),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_annotations_read_by_type_and_one_by_one_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """The same arrays, or the same problems in the same order, whichever annotations have which faults."""
    rng, records = np.random.default_rng(seed), many(40)
    for kind in rng.choice(len(FAULTS), [1, 3, 10, 40][seed % 4]):
        key, value = FAULTS[kind]
        record = records[rng.integers(len(records))]
        if rng.random() < 0.2:
            record.pop(key, None)
        else:
            record[key] = value
    path = written(tmp_path / "a.json", content(annotations=records))

    def read() -> coco_file.CocoFile | list[str]:
        with keep_all_occurrences():
            try:
                return read_with_repairs(path)
            except DatasetError as error:
                return [f"{problem} {[str(example) for example in problem.occurrences]}" for problem in error.problems]

    by_type = read()
    placeholder = AnnotationRecord(0, 0, (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(json_lists, "_decode", lambda raw: None)
    monkeypatch.setattr(
        json_lists,
        "separate",
        lambda items: SeparatedAnnotations([placeholder] * len(items), dict(enumerate(items))),
    )
    one_by_one = read()
    if isinstance(one_by_one, list):
        assert by_type == one_by_one
    else:
        assert_same(by_type, one_by_one)
        assert [str(problem) for problem in by_type.problems] == [str(problem) for problem in one_by_one.problems]


@pytest.mark.parametrize("value", ["01", "[1,]", "nul", '"\\q"'])
def test_what_is_no_json_in_an_annotation_is_reported_with_its_place(tmp_path: Path, value: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content()).replace('"area": 12', f'"area": {value}'))
    with pytest.raises(UserError, match=r"are not JSON: .* line 1 column \d+"):
        read_coco(str(path))


def test_an_annotation_that_is_no_object(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", content(annotations=[*many(6), 5]))
    with pytest.raises(UserError, match=r"1 of 7 entries is not of the form .*entry 7: {\"annotations\": 5}"):
        read_coco(path)
