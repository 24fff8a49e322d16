"""CSV files of Open Images become COCO files."""

import pytest

HEAD = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
ROW = "a,xclick,/m/01yrx,1,0.1,0.6,0.05,0.55,0,1,0,0,0"
NAMES = "LabelName,DisplayName\n/m/01yrx,Cat\n/m/0bt9lr,Dog\n"


def write(source, *rows, name="train-annotations-bbox.csv", names=NAMES):
    source.draw("images/a.png", 40, 60)
    if names:
        source.write("class-descriptions-boxable.csv", names)
    source.write(name, "\n".join([HEAD, *rows]))


def test_boxes_names_and_groups(source, boxes_of, caplog):
    """A group is a crowd region; -1 is unknown; --difficult makes it an object."""
    write(source, ROW, ROW.replace("0,1,0,0,0", "0,1,1,0,0").replace("01yrx", "0bt9lr"), ROW[:-10] + ",0,0,-1,0,0")
    content = source.bring_in("openimages")["train"]
    box = pytest.approx([6, 2, 30, 20])
    assert boxes_of(content) == [("a.png", "Cat", box), ("a.png", "Dog", box), ("a.png", "Cat", box)]
    assert [annotation["iscrowd"] for annotation in content["annotations"]] == [0, 1, 0]
    assert [image["width"] for image in content["images"]] == [60]
    assert "objects marked as difficult: 1 of 3; converted to crowd regions" in caplog.text


def test_groups_can_be_kept(source):
    write(source, ROW.replace("0,1,0,0,0", "0,1,1,0,0"))
    (annotation,) = source.bring_in("openimages", difficult="keep")["train"]["annotations"]
    assert annotation["iscrowd"] == 0


def test_tables_are_splits(source):
    write(source, ROW)
    source.draw("images/validation/b.png", 40, 60)
    write(source, ROW.replace("a,", "b,", 1), name="validation-annotations-bbox.csv")
    source.write("other.csv", "x,y\n1,2\n")
    splits = source.bring_in("openimages")
    assert {name: content["images"][0]["file_name"] for name, content in splits.items()} == {
        "train": "a.png",
        "val": "b.png",
    }


def test_two_tables_of_a_split(source):
    write(source, ROW)
    write(source, ROW, name="oidv6-train-annotations-bbox.csv")
    assert source.refusal("openimages").endswith(
        "give the path of one CSV file; found: oidv6-train-annotations-bbox.csv, train-annotations-bbox.csv"
    )


def test_one_table_in_a_folder_of_annotations(source, boxes_of):
    """The images and the class names of FiftyOne's folders."""
    source.draw("val/data/a.png", 40, 60)
    source.write("val/labels/detections.csv", f"{HEAD}\n{ROW}\n")
    source.write("val/metadata/classes.csv", NAMES.split("\n", 1)[1])
    for given in ("val/labels/detections.csv", "val"):
        source.output = source.output.with_name(f"output {given.count('/')}")
        (content,) = source.bring_in("openimages", given).values()
        assert [row[:2] for row in boxes_of(content)] == [("a.png", "Cat")]


def test_without_class_descriptions(source, boxes_of, caplog):
    write(source, ROW, names=None)
    assert boxes_of(source.bring_in("openimages")["train"])[0][1] == "/m/01yrx"
    assert "the class names are those in LabelName" in caplog.text


def test_equal_class_names_are_told_apart(source, boxes_of):
    write(source, ROW, names="/m/01yrx,Cat\n/m/9,Cat\n")
    assert boxes_of(source.bring_in("openimages")["train"])[0][1] == "Cat (/m/01yrx)"


def test_images_that_are_not_there_are_left_out(source, caplog):
    """The files list all images of Open Images; those of a part are enough."""
    write(source, ROW, *(f"{k}{ROW}" for k in range(3)))
    assert len(source.bring_in("openimages")["train"]["images"]) == 1
    assert f"that are not in {source.folder}/images: 3 of 4; left out" in caplog.text


def test_no_image_at_all(source):
    write(source, f"b{ROW}")
    assert source.refusal("openimages") == (
        "train-annotations-bbox.csv: none of its 1 images is in images, such as ba; give the folder by --images"
    )


MALFORMED = {
    "pixels": (ROW.replace("0.6", "36"), "36 is not between 0 and 1, relative to the image; is it in pixels?"),
    "no number": (ROW.replace("0.6", "x"), "XMax is not a number: 'x'"),
    "interchanged": (ROW.replace("0.6", "0.05"), "the second corner is left of or above the first: 0.1, 0.05, 0.05"),
    "five columns": ("a,xclick,/m/01yrx,1,0.1", "5 columns, expected 13: a,xclick"),
    "a class": (ROW.replace("01yrx", "7"), "the class descriptions have no LabelName /m/7"),
    "a flag": (ROW.replace("0,1,0,0,0", "0,1,2,0,0"), "IsGroupOf is none of 0, 1 and -1: 2"),
}


@pytest.mark.parametrize(("row", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_rows(source, row, message):
    write(source, ROW, row)
    assert source.refusal("openimages").startswith(f"train-annotations-bbox.csv:3: {message}")
    assert len(source.bring_in("openimages", skip_bad=True)["train"]["annotations"]) == 1


def test_other_refusals(source):
    write(source, ROW, names="/m/01yrx,Cat,x\n")
    assert source.refusal("openimages") == "class-descriptions-boxable.csv:1: 3 columns, expected 2: /m/01yrx,Cat,x"
    source.write("class-descriptions-boxable.csv", NAMES)
    (source.folder / "images/a.png").write_bytes(b"no image")
    assert source.refusal("openimages") == "images/a.png: damaged or not an image; remove it"
    source.write("train-annotations-bbox.csv", "ImageID,LabelName,XMin\n")
    assert "no CSV file has the columns ImageID, LabelName, XMin, YMin, XMax, YMax" in source.refusal("openimages")
    given = "train-annotations-bbox.csv"
    assert source.refusal("openimages", given).startswith(f"{given}:1: no column YMin among ImageID, LabelName, XMin")
    source.write(given, HEAD)
    assert source.refusal("openimages") == f"{given}: contains no boxes"
