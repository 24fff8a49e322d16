"""What cannot be read: each one line with its file, place and value; other formats with the way to bring them in."""

from pathlib import Path
from typing import Any

import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.problems import DatasetError

HUGE = int("9" * 400)
IMAGE, CATEGORY, OBJECT = "images", "categories", "annotations"  # image 100 (0.png), category 7, annotation 1
MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    (IMAGE, {"id": 1.5}, 'image 1.5 (0.png): {"id": 1.5}'),
    (IMAGE, {"id": "x1"}, 'image "x1" (0.png): {"id": "x1"}'),
    (IMAGE, {"id": None}, 'entry 1 (0.png): {"id": null}'),
    (IMAGE, {"id": [100]}, 'image [100] (0.png): {"id": [100]}'),
    (IMAGE, {"id": float("nan")}, 'image NaN (0.png): {"id": NaN}'),
    (IMAGE, {"id": "101"}, 'image 101 (1.png): {"id": 101}'),  # as number and as text
    (IMAGE, {"width": "60px"}, 'image 100 (0.png): {"width": "60px"}'),
    (IMAGE, {"width": 60.5}, 'image 100 (0.png): {"width": 60.5}'),
    (IMAGE, {"height": -40}, 'image 100 (0.png): {"height": -40}'),
    (IMAGE, {"height": True}, 'image 100 (0.png): {"height": true}'),
    (IMAGE, {"height": 2**31}, 'image 100 (0.png): {"height": 2147483648}'),
    (IMAGE, {"file_name": None}, 'image 100: {"file_name": null}'),
    (IMAGE, {"file_name": 7}, 'image 100: {"file_name": 7}'),
    (IMAGE, {"file_name": "a\0b"}, 'image 100: {"file_name": "a\\u0000b"}'),
    (IMAGE, {"file_name": "a\ud800"}, 'image 100: {\\"file_name\\": \\"a\\ud800\\"}'),
    (CATEGORY, {"id": 7.5}, 'category 7.5: {"id": 7.5}'),
    (CATEGORY, {"id": "dog"}, 'category "dog": {"id": "dog"}'),
    (CATEGORY, {"id": HUGE}, "category 999"),
    (CATEGORY, {"id": "3"}, 'category 3: {"id": 3}'),  # as number and as text
    (CATEGORY, {"name": None}, 'category 7: {"name": null}'),
    (CATEGORY, {"name": float("nan")}, 'category 7: {"name": NaN}'),
    (CATEGORY, {"name": ["dog"]}, 'category 7: {"name": ["dog"]}'),
    (CATEGORY, {"name": True}, 'category 7: {"name": true}'),
    (CATEGORY, {"name": "d\nog"}, 'category 7: {"name": "d\\nog"}'),
    (CATEGORY, {"name": " cat "}, 'category 3: {"name": "cat"}'),  # with and without spaces
    (OBJECT, {"image_id": "100.5"}, 'annotation 1 of image "100.5": {"image_id": "100.5"}'),
    (OBJECT, {"image_id": None}, 'annotation 1: {"image_id": null}'),
    (OBJECT, {"image_id": "0.png"}, 'annotation 1 of image "0.png": {"image_id": "0.png"}'),
    (OBJECT, {"image_id": 5}, "annotation 1 of image 5"),
    (OBJECT, {"category_id": 3.7}, 'annotation 1 of image 100 (0.png): {"category_id": 3.7}'),
    (OBJECT, {"category_id": [3]}, 'annotation 1 of image 100 (0.png): {"category_id": [3]}'),
    (OBJECT, {"category_id": "cat"}, 'annotation 1 of image 100 (0.png): {"category_id": "cat"}'),
    (OBJECT, {"category_id": 4}, 'annotation 1 of image 100 (0.png): {"category_id": 4}'),
    (OBJECT, {"bbox": "1,2,3,4"}, 'annotation 1 of image 100 (0.png): {"bbox": "1,2,3,4"}'),
    (OBJECT, {"bbox": {"x": 1}}, 'annotation 1 of image 100 (0.png): {"bbox": {"x": 1}}'),
    (OBJECT, {"bbox": [[1, 2, 3, 4]]}, 'annotation 1 of image 100 (0.png): {"bbox": [[1, 2, 3, 4]]}'),
    (OBJECT, {"bbox": [1, 2, 3, 4, 5]}, 'annotation 1 of image 100 (0.png): {"bbox": [1, 2, 3, 4, 5]}'),
    (OBJECT, {"bbox": [1, 2, 3, True]}, 'annotation 1 of image 100 (0.png): {"bbox": [1, 2, 3, true]}'),
    (OBJECT, {"bbox": [1, 2, 3, "4px"]}, 'annotation 1 of image 100 (0.png): {"bbox": [1, 2, 3, "4px"]}'),
    (OBJECT, {"bbox": [1, 2, 3, HUGE]}, 'annotation 1 of image 100 (0.png): {"bbox": [1, 2, 3, 999'),
    (OBJECT, {"bbox": None, "segmentation": [[1, 2, 3]]}, 'annotation 1 of image 100 (0.png): {"segmentation": [[1'),
    (
        OBJECT,
        {"bbox": None, "segmentation": {"size": [40, 60], "counts": [3]}},
        'annotation 1 of image 100 (0.png): {"segmentation": {"size": [40, 60], "counts": [3]}}',
    ),
    (
        OBJECT,
        {"bbox": None, "segmentation": {"size": [4, 6], "counts": [3, 4, 17]}},
        'annotation 1 of image 100 (0.png): {"segmentation": {"size": [4, 6]',
    ),
    (OBJECT, {"area": True}, 'annotation 1 of image 100 (0.png): {"area": true}'),
    (OBJECT, {"area": [600]}, 'annotation 1 of image 100 (0.png): {"area": [600]}'),
    (OBJECT, {"area": HUGE}, 'annotation 1 of image 100 (0.png): {"area": 999'),
    (OBJECT, {"iscrowd": 2}, 'annotation 1 of image 100 (0.png): {"iscrowd": 2}'),
    (OBJECT, {"iscrowd": "maybe"}, 'annotation 1 of image 100 (0.png): {"iscrowd": "maybe"}'),
    (OBJECT, {"iscrowd": [0]}, 'annotation 1 of image 100 (0.png): {"iscrowd": [0]}'),
]


@pytest.mark.parametrize(("records", "change", "place"), MALFORMED, ids=lambda value: str(value)[:40])
def test_what_means_nothing_is_refused_with_its_place(files, records, change, place):
    files.content[records][0].update(change)
    with pytest.raises(DatasetError) as caught:
        files.read()
    message = str(caught.value)
    assert message.startswith(f"{files.json}: 1 of {len(files.content[records])} ") and place in message
    assert message.isprintable() and len(message.replace(str(files.json), "")) < 550


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"images": [', "are not JSON: Expecting value"),
        (b'{"images": []}]', "are not JSON: Extra data"),
        (b'{"images": [],}', "are not JSON: "),
        (b"{'images': []}", "are not JSON: "),
        (b'{"images": []}\n{"images": []}', "are not JSON: Extra data: line 2"),
        (b'{"images": ["\xe9t\xe9"]}', "byte 13 is not valid utf-8; save the file as UTF-8"),
        (b"\x1f\x8b\x08\x00", "are not JSON: byte 1 is not valid utf-8"),
        (b'"images"', "no list of images"),
        (b"null", "no list of images"),
        (b'{"images": {"100": {}}}', "no list of images"),
        (b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]', "a COCO results file"),
        (b'{"images": [[]], "annotations": [], "categories": [1]}', 'is not of the form .*: entry 1: {"images": '),
    ],
)
def test_what_is_no_annotation_file(files, content, message):
    files.json.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        CocoDataset(str(files.images), str(files.json))
    assert str(files.json) in str(caught.value) and "\n" not in str(caught.value)


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox>"
VOC = f"<annotation><filename>a.jpg</filename><object><name>cat</name>{BOX}</object></annotation>"


@pytest.mark.parametrize(
    ("name", "text", "form"),
    [
        ("a.xml", f'<?xml version="1.0"?>\n{VOC}', "voc"),
        ("a.xml", f"\ufeff{VOC}", "voc"),
        ("a.txt", "0 0.5 0.5 0.1 0.2\n3 0.25 0.25 0.1 0.1\n", "yolo"),
        ("a.txt", "0 0.1 0.1 0.2 0.1 0.2 0.2", "yolo"),
        ("data.yaml", "train: images/train\nnc: 2\nnames: [cat, dog]\n", "yolo"),
        ("a.json", '{"version": "5.0.1", "flags": {}, "shapes": [], "imagePath": "a.jpg"}', "labelme"),
        ("a.xml", '<annotations>\n<image id="0" name="b.jpg"/>\n</annotations>', "cvat"),
        ("a.txt", "Car 0.00 0 -1.57 1 2.5 31 22 1.5 1.6 3.7 1.0 1.5 20.0 -1.6\n", "kitti"),
        ("a.csv", "ImageID,LabelName,XMin,XMax,YMin,YMax\nb,/m/7,0,1,0,1\n", "openimages"),
        ("a.csv", "a.jpg,1,2,3,4,cat\n", "csv"),
        ("a.csv", "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,60,40,cat,1,2,3,4\n", "csv"),
    ],
)
def test_other_formats_are_named_with_their_import(files, name, text, form):
    folder = files.folder / "labels"
    folder.mkdir()
    (folder / name).write_text(text, encoding="utf-8")
    source = folder / name if form in ("csv", "openimages", "cvat") else folder
    elsewhere = "" if name == "data.yaml" else f" --images {files.images}"  # the import would not look there
    with pytest.raises(UserError, match=f"--from {form} {source}{elsewhere} --output") as caught:
        CocoDataset(str(files.images), str(folder / name))
    assert f"annotations {folder / name}: " in str(caught.value) and "not COCO JSON" in str(caught.value)
    with pytest.raises(UserError, match=f"a folder of .*--from {form} {folder}{elsewhere} --output"):
        CocoDataset(str(files.images), str(folder))


def test_a_folder_of_coco_files(files, tmp_path: Path):
    files.write()
    (files.folder / "a.xml").write_text(VOC)
    with pytest.raises(UserError, match=r"a folder; name the JSON file in it, such as instances\.json"):
        CocoDataset(str(files.images), str(files.folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: a folder; name the JSON file in it$"):
        CocoDataset(str(files.images), str(tmp_path / "empty"))
