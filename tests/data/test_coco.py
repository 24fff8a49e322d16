"""CocoDataset: what it makes of good files, and what it says of bad ones."""

import gc
import json
import struct
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset, load_image

COCO_TINY = Path(__file__).parents[3] / "shared" / "data" / "coco_tiny"
needs_coco_tiny = pytest.mark.skipif(not COCO_TINY.is_dir(), reason="shared/data/coco_tiny is not here")


def three_images(coco_files):
    """Three images of 40x60: annotations out of order, a crowd, and none on the last."""
    files = coco_files([(40, 60)] * 3)
    files.add(1, [10, 5, 20, 10], category=90)
    files.add(0, [0.5, 1.25, 2, 3], category=7)
    files.add(1, [0, 0, 60, 40], category=3, iscrowd=1)
    return files


def test_classes_follow_the_order_of_ids(coco_files):
    dataset = three_images(coco_files).read()
    assert dataset.class_names == ["cat", "dog", "cow"] and dataset.num_classes == 3
    assert dataset.category_ids.tolist() == [3, 7, 90]


def test_annotations_of_each_image(coco_files):
    dataset = three_images(coco_files).read()
    assert len(dataset) == 3 and dataset.image_ids.tolist() == [100, 101, 102]
    first, second, third = (dataset.annotations(index) for index in range(3))
    np.testing.assert_array_equal(first.boxes, [[0.5, 1.25, 2.5, 4.25]])
    assert first.classes.tolist() == [1] and first.is_crowd.tolist() == [False]
    np.testing.assert_array_equal(second.boxes, [[10, 5, 30, 15], [0, 0, 60, 40]])
    assert second.classes.tolist() == [2, 0] and second.is_crowd.tolist() == [False, True]
    assert third.boxes.shape == (0, 4) and third.classes.shape == (0,) and third.is_crowd.shape == (0,)
    for objects in (first, second, third):
        assert [array.dtype for array in objects] == [np.float32, np.int64, bool]


def test_info(coco_files):
    files = three_images(coco_files)
    assert files.read().info(1) == (101, str(files.images / "1.png"), 40, 60)


def test_prescribed_classes_are_matched_by_name(coco_files):
    dataset = three_images(coco_files).read(class_names=("cow", "cat", "dog"))
    assert dataset.class_names == ["cow", "cat", "dog"] and dataset.category_ids.tolist() == [90, 3, 7]
    assert dataset.annotations(1).classes.tolist() == [0, 1]
    truth = dataset.ground_truth()
    assert {c["id"]: c["name"] for c in truth["categories"]} == {90: "cow", 3: "cat", 7: "dog"}
    assert [a["category_id"] for a in truth["annotations"]] == [7, 90, 3]


def test_other_classes_are_refused_with_both_differences(coco_files):
    with pytest.raises(UserError, match=r"only in the file: cow, dog; missing in the file: bird") as error:
        three_images(coco_files).read(class_names=["cat", "bird"])
    assert "instances.json" in str(error.value)


def test_empty_images(coco_files):
    files = three_images(coco_files)
    files.content["annotations"][0]["iscrowd"] = 1  # image 101 is left with crowds alone
    kept = files.read()
    assert len(kept) == 3 and kept.problem_messages == [
        f"{files.json}: 2 of 3 images have no objects: kept (keep_empty); the first: image 101 (1.png)"
    ]
    dropped = files.read(keep_empty=False)
    assert dropped.image_ids.tolist() == [100] and dropped.problem_messages[0].endswith(
        "2 of 3 images have no objects: left out (keep_empty); the first: image 101 (1.png)"
    )
    assert dropped.info(0).path.endswith("0.png")
    assert dropped.annotations(0).classes.tolist() == [1]
    assert [a["image_id"] for a in dropped.ground_truth()["annotations"]] == [100]


def test_dropping_images_in_the_middle_keeps_the_rest_aligned(coco_files):
    files = coco_files([(20, 20 + number) for number in range(5)])
    files.add(4, [4, 4, 4, 4])
    files.add(1, [1, 1, 1, 1])
    dataset = files.read(keep_empty=False)
    assert [dataset.info(index)[0::3] for index in range(2)] == [(101, 21), (104, 24)]
    assert [dataset.annotations(index).boxes.tolist() for index in range(2)] == [[[1, 1, 2, 2]], [[4, 4, 8, 8]]]


def test_nothing_left(coco_files):
    with pytest.raises(UserError, match="no image has an object, and keep_empty is false"):
        coco_files([(8, 8)]).read(keep_empty=False)


def test_boxes_without_area_are_dropped_and_counted(coco_files):
    files = coco_files([(40, 60)])
    for bad in ([5, 5, 0, 10], [5, 5, 10, -1], [5, 5, float("nan"), 3], [float("inf"), 5, 3, 3], [70, 5, 10, 10]):
        files.add(0, bad)
    files.add(0, [5, 5, 0.2, 0.3])  # tiny, but real
    dataset = files.read()
    np.testing.assert_allclose(dataset.annotations(0).boxes, [[5, 5, 5.2, 5.3]])
    assert [(p.kind, p.level, p.count, p.total) for p in dataset.problems] == [
        ("box_dropped", "note", 5, 6),
        ("box_corners", "warning", 5, 6),
    ]
    assert dataset.problem_messages[0] == (
        f"{files.json}: 5 of 6 boxes have no finite area inside the image: dropped; the first: annotation 1 of "
        'image 100 (0.png): {"bbox": [5.0, 5.0, 0.0, 10.0], "width": 60, "height": 40}'
    )
    assert [example.annotation for example in dataset.problems[0].examples] == [1, 2, 3, 4, 5]
    assert [a["bbox"] for a in dataset.ground_truth()["annotations"]] == [[5, 5, 0.2, 0.3]]


def test_boxes_are_clipped_for_training_but_not_for_evaluation(coco_files):
    files = coco_files([(40, 60)])
    files.add(0, [-5, 30, 100, 20])
    files.add(0, [50, 0, 10.1, 5])  # out by rounding; clipped without ado
    dataset = files.read()
    np.testing.assert_array_equal(dataset.annotations(0).boxes, [[0, 30, 60, 40], [50, 0, 60, 5]])
    assert dataset.problem_messages[0] == (
        f"{files.json}: 1 of 2 boxes reaches beyond the image: clipped; the first: annotation 1 of image 100 (0.png): "
        '{"bbox": [-5.0, 30.0, 100.0, 20.0], "width": 60, "height": 40}'
    )
    assert dataset.ground_truth()["annotations"][0]["bbox"] == [-5, 30, 100, 20]


def test_gaps_are_filled_and_reported_once(coco_files):
    files = coco_files([(40, 60)])
    files.add(0, [0, 0, 4, 5], iscrowd=None, area=None, id=0)
    files.add(0, [0, 0, 4, 6], iscrowd=None, id=9)
    files.add(0, [0, 0, 4, 7], id=9)
    dataset = files.read()
    assert [note.removeprefix(f"{files.json}: ") for note in dataset.problem_messages] == [
        "2 of 3 annotations have no iscrowd: read as 0; the first: annotation 0 of image 100 (0.png)",
        "2 of 3 annotations have a missing, zero, repeated or non-integer id: renumbered; "
        "the first: annotation 0 of image 100 (0.png)",
        "1 of 3 annotations has no area, or none above 0: computed as width * height; "
        "the first: annotation 0 of image 100 (0.png)",
    ]
    truth = dataset.ground_truth()["annotations"]
    assert [(a["id"], a["area"], a["iscrowd"]) for a in truth] == [(1, 20.0, 0), (2, 12.0, 0), (3, 14.0, 0)]


def test_ground_truth_scores_itself_perfectly(coco_files):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    files = three_images(coco_files)
    files.content["annotations"][0]["id"] = 0  # pycocotools would never match it
    truth = coco.COCO()
    truth.dataset = files.read().ground_truth()
    truth.createIndex()
    keys = ("image_id", "category_id", "bbox")
    found = truth.loadRes([{key: a[key] for key in keys} | {"score": 0.9} for a in truth.dataset["annotations"]])
    evaluation = cocoeval.COCOeval(truth, found, "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_segmentations_are_not_kept(coco_files):
    files = coco_files([(40, 60)])
    for _ in range(2000):
        files.add(0, [1, 1, 3, 3], segmentation=[[1.5] * 40])
    dataset = files.read()
    gc.collect()
    assert sum(sys.getsizeof(value) for value in vars(dataset).values()) < 2000 * 64
    assert not any(
        isinstance(item, dict) for value in vars(dataset).values() if isinstance(value, list) for item in value
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "it has no list of images"),
        (lambda c: c.pop("annotations"), "it has no list of annotations"),
        (lambda c: c.update(categories={}), "it has no list of categories"),
        (lambda c: c.update(categories=[]), "its list of categories is empty"),
        (lambda c: c.update(images=[]), "its list of images is empty"),
        (lambda c: c.update(images=[1]), r'1 of 1 entry is not .*: entry 1: {"images": 1}'),
        (lambda c: c["images"].append(c["images"][0]), r"1 of 4 images has the id of .*: image 100 \(0.png\)"),
        (
            lambda c: c["images"][0].update(id="a"),
            r'1 of 3 images has an id .* not an integer.*: image "a" \(0.png\): {"id": "a"}',
        ),
        (lambda c: c["images"][0].update(height=-1), r'1 of 3 images .* image 100 \(0.png\): {"height": -1}'),
        (lambda c: c["images"][0].update(width=60.5), r'1 of 3 images .* image 100 \(0.png\): {"width": 60.5}'),
        (
            lambda c: c["images"][0].update(file_name=""),
            r'1 of 3 images has no valid file_name.*: image 100: {"file',
        ),
        (
            lambda c: c["categories"][0].update(name=" "),
            r'1 of 3 categories has a missing or unprintable name.*: category 7: {"name": " "}',
        ),
        (lambda c: c["categories"][0].update(name="cat"), r'1 of 3 categories .* category 3: {"name": "cat"}'),
        (lambda c: c["categories"][0].update(id=3), r'1 of 3 categories has the id of .* category 3: {"id": 3}'),
        (
            lambda c: c["annotations"][0].update(image_id=5),
            r"1 of 3 annotations has an image_id that no image has.*: annotation 1 of image 5$",
        ),
        (
            lambda c: c["annotations"][0].update(category_id=4),
            r'annotation 1 of image 101 \(1.png\): {"category_id": 4}',
        ),
        (
            lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
            r'annotation 1 of image 101 \(1.png\): {"bbox": \[1, 2, 3\]}',
        ),
        (lambda c: c["annotations"][0].update(bbox=["a"] * 4), r'annotation 1 of image 101 \(1.png\): {"bbox": \["a"'),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            r"neither a bbox nor .* annotation 1 of image 101 \(1.png\): no bbox",
        ),
        (lambda c: c["annotations"][0].update(area="big"), r'annotation 1 of image 101 \(1.png\): {"area": "big"}'),
        (lambda c: c["annotations"][0].update(image_id=True), 'annotation 1 of image true: {"image_id": true}'),
    ],
)
def test_bad_content_is_named(coco_files, change, message):
    files = three_images(coco_files)
    files.content = json.loads(json.dumps(files.content))  # a copy of its own
    change(files.content)
    with pytest.raises(UserError, match=message) as error:
        files.read()
    assert str(files.json) in str(error.value) and "\n" not in str(error.value)


def test_missing_files_are_named(coco_files, monkeypatch):
    files = three_images(coco_files)
    files.write()
    with pytest.raises(UserError, match=r"cannot read annotations .*none.json: No such file.*; see dataset/README.md"):
        CocoDataset(str(files.images), str(files.folder / "none.json"))
    monkeypatch.chdir(files.folder)
    with pytest.raises(
        UserError, match=r"cannot read annotations dataset/shapes/a.json: .*; run ppdet-lite make-shapes"
    ):
        CocoDataset(str(files.images), "dataset/shapes/a.json")
    with pytest.raises(UserError, match=r"image folder .*nowhere \(for .*instances.json\) does not exist"):
        CocoDataset(str(files.folder / "nowhere"), str(files.json))


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100000])
def test_not_json(coco_files, text):
    files = three_images(coco_files)
    files.json.write_bytes(text)
    with pytest.raises(UserError, match=r"instances.json are not JSON"):
        CocoDataset(str(files.images), str(files.json))


def test_json_that_is_not_coco(coco_files):
    files = three_images(coco_files)
    files.content = [1, 2]
    with pytest.raises(UserError, match="not a COCO detection file"):
        files.read()


def test_byte_order_mark_and_non_ascii_paths(coco_files):
    files = coco_files([(8, 9)], name="dossier été 图像")
    files.content["images"][0]["file_name"] = "собака.png"
    (files.images / "0.png").rename(files.images / "собака.png")
    files.json.write_text("\ufeff" + json.dumps(files.content, ensure_ascii=False), encoding="utf-8")
    assert CocoDataset(str(files.images), str(files.json)).load(0).shape == (8, 9, 3)


def test_pixels_are_rgb(tmp_path):
    path = tmp_path / "red.png"
    path.write_bytes(cv2.imencode(".png", np.full((2, 3, 3), (10, 20, 200), np.uint8))[1].tobytes())  # BGR
    assert load_image(str(path))[0, 0].tolist() == [200, 20, 10]


def test_gray_and_transparent_images_become_rgb(tmp_path):
    for number, pixels in enumerate([np.full((2, 3), 77, np.uint8), np.full((2, 3, 4), 77, np.uint8)]):
        path = tmp_path / f"{number}.png"
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        assert load_image(str(path)).shape == (2, 3, 3) and load_image(str(path))[1, 1].tolist() == [77] * 3


def test_a_missing_image_is_named_with_its_id(coco_files):
    files = three_images(coco_files)
    (files.images / "1.png").unlink()
    with pytest.raises(UserError, match=r"cannot read image .*1.png: No such file.* \(image id 101 in .*instances"):
        files.read().load(1)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(50)])
def test_a_damaged_image_is_named_with_its_id(coco_files, content):
    files = three_images(coco_files)
    (files.images / "1.png").write_bytes(content)
    with pytest.raises(UserError, match=r"image .*1.png cannot be decoded .*\(image id 101 in"):
        files.read().load(1)


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("cut", [1, 2, 100, 2000])
def test_a_truncated_jpeg_is_refused(tmp_path, cut, progressive):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive])[1].tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert load_image(str(path)).shape == (64, 64, 3)
    path.write_bytes(data[:-cut])
    with pytest.raises(UserError, match=r"a.jpg cannot be decoded .*: Premature end of JPEG file"):
        load_image(str(path))


def test_an_end_marker_in_a_thumbnail_does_not_hide_truncation(tmp_path):
    data = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
    thumbnail = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    with_thumbnail = data[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + data[2:]
    path = tmp_path / "a.jpg"
    path.write_bytes(with_thumbnail + b"trailing bytes of a camera")
    assert load_image(str(path)).shape == (64, 64, 3)
    path.write_bytes(with_thumbnail[:-20])
    with pytest.raises(UserError, match="Premature end of JPEG file"):
        load_image(str(path))


def rotated_jpeg(height: int, width: int, orientation: int) -> bytes:
    """A JPEG stored as height x width, left half white, that an EXIF tag turns."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2] = 255
    tiff = b"MM\x00\x2a" + struct.pack(">I", 8) + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\x00\x00" + tiff
    data = cv2.imencode(".jpg", pixels)[1].tobytes()
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]


def test_exif_orientation_is_applied(coco_files):
    files = coco_files([(40, 24)])  # what annotation tools show
    (files.images / "0.png").write_bytes(rotated_jpeg(24, 40, orientation=6))  # turn clockwise to show
    image = files.read().load(0)
    assert image.shape == (40, 24, 3)
    assert image[:18].min() > 200 and image[22:].max() < 50  # left went to the top


def test_a_size_that_differs_is_named_with_both(coco_files):
    files = coco_files([(24, 40)])
    (files.images / "0.png").write_bytes(rotated_jpeg(24, 40, orientation=6))
    with pytest.raises(UserError, match=r"0.png is 24x40 .* image id 100 .* has 40x24; was it .*EXIF"):
        files.read().load(0)
    files.content["images"][0]["width"] = 39
    with pytest.raises(UserError, match=r"0.png is 24x40 .* has 39x24$"):
        files.read().load(0)


@needs_coco_tiny
def test_coco_tiny_agrees_with_a_plain_reading_of_the_file():
    file = COCO_TINY / "annotations" / "instances_train2017.json"
    dataset = CocoDataset(str(COCO_TINY / "train2017"), str(file))
    plain = json.loads(file.read_text())
    assert dataset.num_classes == 80 and dataset.category_ids[-1] == 90 and dataset.class_names[79] == "toothbrush"
    names = {c["id"]: c["name"] for c in plain["categories"]}
    for index, image in enumerate(plain["images"]):
        expected = [a for a in plain["annotations"] if a["image_id"] == image["id"]]
        objects = dataset.annotations(index)
        assert [dataset.class_names[c] for c in objects.classes] == [names[a["category_id"]] for a in expected]
        assert objects.is_crowd.tolist() == [a["iscrowd"] == 1 for a in expected]
        for box, a in zip(objects.boxes, expected, strict=True):
            x, y, w, h = a["bbox"]
            np.testing.assert_allclose(box, [x, y, x + w, y + h], atol=0.02)
    by_id = {a["id"]: a for a in plain["annotations"]}
    truth = dataset.ground_truth()
    assert len(truth["annotations"]) == len(by_id)
    assert sorted(a["area"] for a in truth["annotations"]) == sorted(a["area"] for a in by_id.values())
    assert dataset.load(3).shape == (*dataset.sizes[3], 3)
