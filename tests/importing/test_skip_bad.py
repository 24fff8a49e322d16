"""--skip-bad leaves out what cannot be read and lists it; without it the import is refused and names the option."""

import csv
import json

import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.importing.convert import import_data

XML = "<annotation><size><width>60</width><height>40</height></size>{}</annotation>"
OBJECT = "<object><name>cat</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>{}</xmax><ymax>22</ymax></bndbox></object>"


def skipped(source):
    """Return the rows of skipped.csv, with paths relative to the source."""
    text = (source.output / "skipped.csv").read_text(encoding="utf-8").replace(f"{source.folder}/", "")
    header, *rows = csv.reader(text.splitlines())
    assert header == ["file", "line", "reason"]
    return [tuple(row) for row in rows]


def refused(source, form, reason):
    """Check that the import without --skip-bad is refused for this reason, and names the option."""
    with pytest.raises(UserError, match=r"; or leave it out with --skip-bad$") as caught:
        import_data(form, source.folder, source.output)
    assert reason in str(caught.value) and str(caught.value).count("--skip-bad") == 1
    assert not source.output.exists() and not list(source.output.parent.glob(".*"))


def test_labelme_shapes_files_and_images(source, boxes_of, caplog):
    """A shape without box, JSON of another program, JSON that is cut, and an image of another size."""
    rectangle = {"label": "cat", "shape_type": "rectangle", "points": [[1, 2], [31, 22]]}
    for name, width, shapes in [("a", 60, [rectangle, rectangle | {"shape_type": "point"}]), ("b", 90, [])]:
        source.draw(f"{name}.png", 40, 60)
        content = {"imagePath": f"{name}.png", "imageHeight": 40, "imageWidth": width, "shapes": shapes}
        source.write(f"{name}.json", json.dumps(content))
    source.write("coco.json", '{"images": []}')
    source.write("cut.json", '{"shapes": [\n')
    refused(source, "labelme", "a.json: shape 2 (cat): shape type point has no box")
    (content,) = source.bring_in("labelme", skip_bad=True).values()
    assert boxes_of(content) == [("a.png", "cat", [1, 2, 30, 20])]
    assert [image["file_name"] for image in content["images"]] == ["a.png"]
    found = skipped(source)
    assert [row[:2] for row in found] == [("a.json", ""), ("coco.json", ""), ("cut.json", "2"), ("b.json", "")]
    reasons = [
        "shape 2 (cat): shape type point has no box",
        "not labelme JSON",
        "not JSON: ",
        "has size 90x40, but b.png",
    ]
    assert all(row[2].startswith(reason) for row, reason in zip(found, reasons, strict=True))
    assert f"{source.output}/skipped.csv lists what could not be read; 4 items were left out by" in caplog.text


def test_voc_objects_lists_and_classes(source, boxes_of):
    """A coordinate that is no number, an XML file without image, a list entry without XML, a class of no map."""
    for name in ("a", "b"):
        source.draw(f"JPEGImages/{name}.png", 40, 60)
    stranger = OBJECT.format(31).replace("cat", "dog")
    source.write("Annotations/a.xml", XML.format(OBJECT.format(31) + "\n" + OBJECT.format("x") + stranger))
    source.write("Annotations/b.xml", XML.format(OBJECT.format(5)))
    source.write("Annotations/gone.xml", XML.format(""))
    source.write("ImageSets/Main/train.txt", "a\nnever\n")
    source.write("ImageSets/Main/val.txt", "b\n")
    names = source.write("names.txt", "cat\n")
    refused(source, "voc", "a.xml:2: xmax is not a number: 'x'")
    splits = source.bring_in("voc", classes=names, skip_bad=True)
    assert boxes_of(splits["train"]) == [("a.png", "cat", [1, 2, 30, 20])]
    assert boxes_of(splits["val"]) == [("b.png", "cat", [1, 2, 4, 20])]
    assert skipped(source) == [
        ("Annotations/a.xml", "2", "xmax is not a number: 'x'"),
        ("Annotations/gone.xml", "1", "no image gone.* in JPEGImages; give the folder by --images"),
        ("Annotations/a.xml", "", "the class 'dog' is not in names.txt"),
        ("ImageSets/Main/train.txt", "2", "never is not an annotated image"),
    ]


def test_yolo_lines_images_and_list_entries(source, boxes_of):
    for name in ("a", "b"):
        source.draw(f"images/{name}.png", 40, 60)
        source.write(f"labels/{name}.txt", "0 0.5 0.5 0.5 0.5\n7 0.5 0.5 0.5 0.5\n")
    (source.folder / "images/b.png").write_bytes(b"no image")
    source.write("train.txt", "images/a.png\nimages/gone.png\nimages/b.png\n")
    source.write("data.yaml", "train: train.txt\nnames: [cat]\n")
    refused(source, "yolo", "train.txt:2: no image images/gone.png")
    (content,) = source.bring_in("yolo", skip_bad=True).values()
    assert boxes_of(content) == [("a.png", "cat", [15, 10, 30, 20])]
    assert skipped(source) == [
        ("train.txt", "2", "no image images/gone.png, expected at images/gone.png"),
        ("labels/a.txt", "2", "'7' is not a class index from 0 to 0"),
        ("images/b.png", "", "damaged or not an image; remove it"),
    ]


def test_csv_rows(source, boxes_of):
    source.draw("a.png", 40, 60)
    source.write("boxes.csv", "a.png,1,2,31,22,cat\na.png,1,2,x,22,cat\nb.png,1,2,3,4,cat\n")
    refused(source, "csv", "boxes.csv:2: x2 is not a number")
    assert boxes_of(source.bring_in("csv", skip_bad=True)["all"]) == [("a.png", "cat", [1, 2, 30, 20])]
    assert [row[1] for row in skipped(source)] == ["2", "3"]


def test_nothing_to_skip_and_nothing_left(source):
    source.draw("a.png", 40, 60)
    source.write("boxes.csv", "a.png,1,2,31,22,cat\n")
    source.bring_in("csv", skip_bad=True)
    assert sorted(path.name for path in source.output.iterdir()) == ["all", "annotations"]


def test_a_source_of_bad_items_is_refused(source):
    source.draw("a.png", 40, 60)
    source.write("a.txt", "9 0.5 0.5 0.5 0.5\n")
    source.write("classes.txt", "cat\n")
    message = source.refusal("yolo", skip_bad=True)
    assert source.refusal("yolo", skip_bad=True, fractions=[0.5, 0.5]) == message
    assert (
        message.startswith("no image has objects; ")
        and "; 1 item was left out by --skip-bad, the first: a.txt:1" in message
    )
