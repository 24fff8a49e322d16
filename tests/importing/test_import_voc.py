"""VOC trees become COCO files; what is malformed is told with its line."""

import json
import logging
import shutil
from pathlib import Path

import pytest

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>
"""


def xml(*objects, width=60, height=40, filename="other.jpg"):
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{filename}</filename>\n{size}\n{''.join(objects)}</annotation>\n"


def an_object(*corners, name="cat", difficult=0):
    return OBJECT.format(*corners, name=name, difficult=difficult)


def tree(source):
    """Three images in two lists: train has an easy and a difficult object, val none; the third is in no list."""
    for name in ("a", "b", "c"):
        source.draw(f"JPEGImages/{name}.png", 40, 60)
    source.write("Annotations/a.xml", xml(an_object(1, 2, 31, 22), an_object(5, 6, 60, 40, name="ant", difficult=1)))
    source.write("Annotations/b.xml", xml(width=0, height=0))
    source.write("Annotations/c.xml", xml(an_object(1, 1, 2, 2, name="bee")))
    source.write("ImageSets/Main/train.txt", "a\n")
    source.write("ImageSets/Main/val.txt", "\nb\n")
    source.write("ImageSets/Main/trainval.txt", "a\nb\n")
    return source


def test_a_tree_with_lists(source):
    splits = tree(source).bring_in("voc")
    categories = [{"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}, {"id": 3, "name": "cat"}]
    assert splits == {
        "train": {
            "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0},
                {"id": 2, "image_id": 1, "category_id": 1, "bbox": [5, 6, 55, 34], "area": 1870, "iscrowd": 1}
                | {"difficult": 1},
            ],
            "categories": categories,
        },
        "val": {
            "images": [{"id": 1, "file_name": "b.png", "width": 60, "height": 40}],
            "annotations": [],
            "categories": categories,
        },
    }
    assert (source.output / "train/a.png").read_bytes() == (source.folder / "JPEGImages/a.png").read_bytes()
    assert sorted(path.name for path in source.output.iterdir()) == ["annotations", "train", "val"]


def test_pixels_counted_from_one(source, boxes_of):
    splits = tree(source).bring_in("voc", voc_origin=1)
    assert [box for _, _, box in boxes_of(splits["train"])] == [[0, 1, 31, 21], [4, 5, 56, 35]]


@pytest.mark.parametrize(("difficult", "crowds"), [("crowd", [0, 1]), ("keep", [0, 0]), ("drop", [0])])
def test_difficult_objects(source, caplog, difficult, crowds):
    found = tree(source).bring_in("voc", difficult=difficult)["train"]["annotations"]
    assert [record["iscrowd"] for record in found] == crowds
    assert [record.get("difficult", 0) for record in found] == [0, 1][: len(crowds)]
    assert "objects marked as difficult: 1 of 3; " in caplog.text


def test_trainval_counts_where_train_and_val_are_missing(source):
    tree(source)
    for name in ("train", "val"):
        (source.folder / f"ImageSets/Main/{name}.txt").unlink()
    assert list(source.bring_in("voc")) == ["trainval"]


def test_xml_files_beside_their_images(source, boxes_of):
    """The image is the one with the XML file's name; one that is named only inside is found too."""
    source.draw("valid/x.png", 40, 60)
    source.draw("train/y.jpg", 40, 60)
    source.draw("train/z.jpg", 40, 60)
    source.write("valid/x.xml", xml(an_object("0.5", 1, 2.5, " 3 ")))
    source.write("train/1.xml", xml(an_object(1, 1, 1, 1), filename="y.jpg"))
    source.write("train/z.xml", xml(filename="y.jpg"))
    splits = source.bring_in("voc")
    assert list(splits) == ["train", "val"]
    assert boxes_of(splits["train"]) == [("y.jpg", "cat", [1, 1, 0, 0])]
    assert [image["file_name"] for image in splits["train"]["images"]] == ["y.jpg", "z.jpg"]
    assert boxes_of(splits["val"]) == [("x.png", "cat", [0.5, 1, 2, 2])]


GOOD = an_object(1, 2, 31, 22)
MALFORMED = {
    "cut": (xml(GOOD)[:-9], "a.xml:7: not well-formed XML: "),
    "empty": ("", "a.xml:1: not well-formed XML: no element found"),
    "bomb": (
        '<!DOCTYPE x [<!ENTITY a "aaa"><!ENTITY b "&a;&a;">]>' + xml(),
        "a.xml:1: has a DTD (<!DOCTYPE>), which is not supported",
    ),
    "another root": ("<doc/>", "a.xml:1: <doc> is not VOC's <annotation>"),
    "no width": (xml().replace("width", "w"), "a.xml:3: <size> has no <width>"),
    "width is not a number": (xml(width="60px"), "a.xml:3: the image's width is not a number: '60px'"),
    "width has a fraction": (xml(width=60.5), "a.xml:3: the image's width is not an integer: '60.5'"),
    "size below 0": (xml(width=-60), "a.xml:3: the image's size is negative: -60x40"),
    "another size": (
        xml(width=61),
        "a.xml: has size 61x40, but JPEGImages/a.png is 60x40 (width x height); correct one",
    ),
    "no box": (xml(GOOD.replace("bndbox", "robndbox")), "a.xml:4: <object> has no <bndbox>"),
    "no xmax": (xml(GOOD.replace("xmax", "x2", 2)), "a.xml:5: <bndbox> has no <xmax>"),
    "no number": (xml(an_object(1, "two", 3, 4)), "a.xml:5: ymin is not a number: 'two'"),
    "not finite": (xml(an_object(1, 2, "nan", 4)), "a.xml:5: xmax is not a number: 'nan'"),
    "interchanged": (xml(an_object(31, 2, 1, 22)), "a.xml:5: the second corner is left of or above the first: 31, 2"),
    "no name": (xml(an_object(1, 2, 3, 4, name=" ")), "a.xml:4: missing or unprintable class name: ' '"),
    "difficult": (xml(an_object(1, 2, 3, 4, difficult="very")), "a.xml:4: difficult is neither 0 nor 1: very"),
    "encoding": ('<?xml version="1.0" encoding="martian"?>' + xml(), "a.xml"),
}


@pytest.mark.parametrize(("text", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_files(source, text, message):
    tree(source).write("Annotations/a.xml", text)
    assert source.refusal("voc").startswith(f"Annotations/{message}")


def test_images_that_are_not_there(source):
    (tree(source).folder / "JPEGImages/a.png").unlink()
    message = "Annotations/a.xml:1: no image a.* or other.jpg in JPEGImages; give the folder by --images"
    assert source.refusal("voc") == message
    for name in ("a.png", "a.jpg"):
        source.draw(f"JPEGImages/{name}", 40, 60)
    assert "Annotations/a.xml:1: ambiguous images a.jpg, a.png in JPEGImages;" in source.refusal("voc")


def test_lists_that_do_not_fit(source):
    tree(source).write("ImageSets/Main/val.txt", "b\nd\n")
    assert source.refusal("voc") == "ImageSets/Main/val.txt:2: d is not an annotated image"
    source.write("ImageSets/Main/val.txt", "b\na.png\n")
    assert source.refusal("voc").startswith("ImageSets/Main/val.txt:2: a.png is already in ")
    source.write("ImageSets/Main/val.txt", "\n")
    assert source.refusal("voc") == "ImageSets/Main/val.txt: lists no images"


@pytest.mark.skipif(not BCCD.is_dir(), reason="shared/data/bccd is not here")
def test_bccd_is_what_its_coco_file_says(source, boxes_of):
    (found,) = source.bring_in("voc", source=str(BCCD / "voc"), images=BCCD / "val", transfer="leave").values()
    truth = json.loads((BCCD / "val.json").read_text())
    names = {image["file_name"] for image in found["images"]}
    assert len(names) == 12 and found["categories"] == truth["categories"]
    assert boxes_of(found) == [row for row in boxes_of(truth) if row[0] in names]


def test_objects_that_cvat_rotated_are_reported(source, caplog):
    """CVAT writes the box before its rotation, with the angle; 0 is no rotation, and text an attribute of a user."""
    caplog.set_level(logging.INFO)
    attribute = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes></object>"
    objects = [
        an_object(1, 2, 31, 22).replace("</object>", attribute.format(value)) for value in ("30.5", "0.0", "left")
    ]
    source.draw("JPEGImages/a.png", 40, 60)
    source.write("Annotations/a.xml", xml(*objects))
    (content,) = source.bring_in("voc").values()
    assert [record.get("attributes") for record in content["annotations"]] == [{"rotation": 30.5}, None, None]
    assert "1 of 3 boxes has a rotation" in caplog.text


CAT = "<annotation><object><name>{}</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>31</xmax><ymax>22</ymax></bndbox>"
CAT = f"{CAT}</object></annotation>"


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("gbk", "gbk"),
        ("gb2312", "gbk"),  # written by programs that mean GBK; 猫 is in both, 喵 only in GBK
        ("shift_jis", "cp932"),
        ("iso-8859-1", "latin-1"),
        ("windows-1252", "cp1252"),
        ("utf-16", "utf-16"),
        (None, "utf-16"),
        ("utf-16", "utf-8"),  # .NET declares UTF-16 in text that is then saved as UTF-8
        ("utf-8", "utf-8-sig"),
    ],
)
def test_xml_in_other_encodings(source, boxes_of, declared, encoding):
    name = {"gbk": "喵", "cp932": "猫", "latin-1": "café", "cp1252": "€café"}.get(encoding, "猫 café")
    source.draw("a.png", 40, 60)
    head = "" if declared is None else f'<?xml version="1.0" encoding="{declared}"?>\n'
    (source.folder / "a.xml").write_bytes((head + CAT.format(name)).encode(encoding))
    assert boxes_of(source.bring_in("voc")["all"]) == [("a.png", name, [1, 2, 30, 20])]


@pytest.mark.parametrize("encoding", ["gbk", "cp1252", "cp932"])
def test_xml_of_an_undeclared_encoding(source, boxes_of, encoding):
    """It is read where only a path is not UTF-8, and refused where a class name is not."""
    source.draw("a.png", 40, 60)
    text = CAT.replace("<object>", "<path>/{}/a.png</path><filename>{}.png</filename><object>").replace("{}", "{0}", 2)
    word = "é" if encoding == "cp1252" else "猫表"  # 表 ends with the byte of a backslash in cp932
    (source.folder / "a.xml").write_bytes(text.replace("{0}", word).format("cat").encode(encoding))
    assert boxes_of(source.bring_in("voc")["all"]) == [("a.png", "cat", [1, 2, 30, 20])]
    shutil.rmtree(source.output)
    (source.folder / "a.xml").write_bytes(CAT.format(word).encode(encoding))
    message = source.refusal("voc")
    assert (
        message.startswith("a.xml:1: the class name '") and "is not in the encoding of the file; declare it" in message
    )


def test_comments_in_lists(source):
    tree(source).write("ImageSets/Main/val.txt", "# one image\nb\n")
    assert len(source.bring_in("voc")["val"]["images"]) == 1


def test_a_rotation_that_is_not_a_finite_number_is_ignored(source):
    """JSON has no NaN."""
    turned = "<attributes><attribute><name>rotation</name><value>nan</value></attribute></attributes></object>"
    tree(source).write("Annotations/a.xml", xml(an_object(1, 2, 31, 22).replace("</object>", turned)))
    (box,) = source.bring_in("voc")["train"]["annotations"]
    assert box["bbox"] == [1, 2, 30, 20] and "attributes" not in box
