"""KITTI's text files become COCO files."""

import pytest

CAR = "Car 0.00 0 -1.57 1.5 2.00 31.00 22.00 1.50 1.60 3.70 1.00 1.50 20.00 -1.60"
IGNORED = "DontCare -1 -1 -10 40.00 5.00 50.00 15.00 -1 -1 -1 -1000 -1000 -1000 -10"


def test_objects_and_regions_to_ignore(source, boxes_of, caplog):
    """DontCare is a crowd region of each class; an empty file is an image without objects."""
    for name in ("000000", "000001"):
        source.draw(f"training/image_2/{name}.png", 40, 60)
    source.draw("testing/image_2/000000.png", 40, 60)
    source.write("training/label_2/000000.txt", f"{CAR}\n{IGNORED}\n{CAR.replace('Car', 'Person_sitting')}\n")
    source.write("training/label_2/000001.txt", "")
    content = source.bring_in("kitti")["all"]
    assert boxes_of(content) == [
        ("000000.png", "Car", [1.5, 2, 29.5, 20]),
        ("000000.png", "Person_sitting", [1.5, 2, 29.5, 20]),
        ("000000.png", "Car", [40, 5, 10, 10]),
        ("000000.png", "Person_sitting", [40, 5, 10, 10]),
    ]
    assert [annotation["iscrowd"] for annotation in content["annotations"]] == [0, 0, 1, 1]
    assert [image["file_name"] for image in content["images"]] == ["000000.png", "000001.png"]
    assert "regions to ignore: 1; written as crowd regions of each class" in caplog.text


@pytest.mark.parametrize("given", ["", "train", "train/label_2"])
def test_folders_that_may_be_given(source, given):
    """The splits are the folders that contain a label_2; images of the same name are those beside it."""
    for split, width in (("train", 60), ("val", 70)):
        source.draw(f"{split}/image_2/a.png", 40, width)
        source.write(f"{split}/label_2/a.txt", CAR)
    splits = source.bring_in("kitti", given)
    widths = {name: [image["width"] for image in content["images"]] for name, content in splits.items()}
    assert widths == ({"all": [60]} if given else {"train": [60], "val": [70]})


def test_text_files_beside_the_images_or_elsewhere(source):
    source.draw("a.png", 40, 60)
    source.write("a.txt", CAR)
    assert len(source.bring_in("kitti")["all"]["annotations"]) == 1


@pytest.mark.parametrize("prefix", ["train/", ""])
def test_images_elsewhere(source, prefix):
    folder = source.draw(f"../pictures/{prefix}a.png", 40, 60).parents[1 if prefix else 0]
    source.write("train/label_2/a.txt", CAR)
    (content,) = source.bring_in("kitti", images=folder).values()
    assert len(content["annotations"]) == 1


def test_scores_are_reported(source, caplog):
    source.draw("a.png", 40, 60)
    source.write("a.txt", f"{CAR} 0.9\n")
    source.bring_in("kitti")
    assert "objects with a score: 1; not read. Are these predictions?" in caplog.text


MALFORMED = {
    "14 fields": (CAR.rsplit(" ", 1)[0], ":2: 14 fields, expected 15, or 16 with a score: Car 0.00 0 "),
    "17 fields": (f"{CAR} 1 2", ":2: 17 fields, expected 15, or 16 with a score"),
    "yolo": ("0 0.5 0.5 0.1 0.2", ":2: 5 fields, expected 15"),
    "a class of two words": (f"traffic {CAR}", ":2: truncated is not a number: 'Car'"),
    "no number": (CAR.replace("31.00", "x"), ":2: right is not a number: 'x'"),
    "interchanged": (
        CAR.replace("31.00", "1.00"),
        ":2: the second corner is left of or above the first: 1.5, 2, 1, 22",
    ),
}


@pytest.mark.parametrize(("line", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_lines(source, boxes_of, line, message):
    source.draw("a.png", 40, 60)
    source.write("a.txt", f"{CAR}\n{line}\n")
    assert source.refusal("kitti").startswith(f"a.txt{message}")
    assert len(boxes_of(source.bring_in("kitti", skip_bad=True)["all"])) == 1


def test_images_that_are_missing(source, caplog):
    for name in ("a", "b"):
        source.draw(f"image_2/{name}.png", 40, 60)
        source.write(f"label_2/{name}.txt", CAR)
    source.write("label_2/gone.txt", CAR)
    (source.folder / "label_2/b.txt").unlink()
    assert source.refusal("kitti") == "label_2/gone.txt: no image gone.* in image_2; give the folder by --images"
    assert len(source.bring_in("kitti", skip_bad=True)["all"]["images"]) == 1
    assert "images without a readable text file: 1 of 2; left out" in caplog.text
    assert f"{source.folder / 'label_2/gone.txt'},," in (source.output / "skipped.csv").read_text(encoding="utf-8")
