"""CSV tables become COCO files; what is malformed is told with its line."""

import pytest


def test_rows_without_names_of_columns(source, boxes_of):
    source.draw("images/a.png", 40, 60)
    source.draw("images/b.png", 40, 60)
    source.write("boxes.csv", 'images/a.png,1,2,31,22,cat\nimages/b.png,,,,,\n\nimages/a.png,0.5,0,9,9,"ant, red"\n')
    (content,) = source.bring_in("csv").values()
    assert boxes_of(content) == [("a.png", "cat", [1, 2, 30, 20]), ("a.png", "ant, red", [0.5, 0, 8.5, 9])]
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_named_columns_in_any_order(source, boxes_of, delimiter):
    source.draw("a.png", 40, 60)
    rows = [
        "filename,width,height,note,class,xmin,xmax,ymin,ymax",
        "a.png,60,40,x,cat,1,31,2,22",
    ]
    source.write("boxes.csv", "﻿" + "\r\n".join(rows).replace(",", delimiter))
    (content,) = source.bring_in("csv", "boxes.csv").values()
    assert boxes_of(content) == [("a.png", "cat", [1, 2, 30, 20])]


MALFORMED = {
    "five columns": ("a.png,1,2,3,cat", ":2: 5 columns, expected 6: a.png,1,2,3,cat"),
    "no number": ("a.png,1,2,x,4,cat", ":2: x2 is not a number: 'x'"),
    "a number missing": ("a.png,1,2,,4,cat", ":2: x2 is not a number: ''"),
    "underscores": ("a.png,1,2,1_0,4,cat", ":2: x2 is not a number: '1_0'"),
    "huge": ("a.png,1,2,1e300,4,cat", ":2: x2 is not a number of pixels: '1e300'"),
    "infinite": ("a.png,1,2,inf,4,cat", ":2: x2 is not a number of pixels: 'inf'"),
    "interchanged": (
        "a.png,3,2,1,4,cat",
        ":2: the second corner is left of or above the first: 3, 2, 1, 4 (x1, y1, x2, y2)",
    ),
    "a quote": ('"a.png,1,2,3,4,cat', ':2: a quote (") is not closed in this line'),
    "no class": ("a.png,1,2,3,4,", ":2: missing or unprintable class name: ''"),
    "no file": (",1,2,3,4,cat", ":2: missing or invalid file name: ''"),
    "a long name": ("a" * 9999 + ".png,1,2,3,4,cat", ":2: no image " + "a" * 200 + "..., expected at "),
    "no image": ("b.png,1,2,3,4,cat", ":2: no image b.png, expected at b.png; give the folder by --images"),
}


@pytest.mark.parametrize(("row", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_rows(source, row, message):
    source.draw("a.png", 40, 60)
    source.write("boxes.csv", f"a.png,1,2,3,4,cat\n{row}\n")
    refusal = source.refusal("csv")
    assert refusal.startswith(f"boxes.csv{message}") if message.endswith(" at ") else refusal == f"boxes.csv{message}"


def test_other_refusals(source):
    source.draw("a.png", 40, 60)
    source.write("boxes.csv", "filename,xmin,ymin,xmax,label\na.png,1,2,3,cat\n")
    assert source.refusal("csv").startswith("boxes.csv:1: no column y2 or ymax or y_max among filename, xmin")
    source.write("boxes.csv", "file,x1,y1,x2,y2,class,width,height\na.png,1,2,3,4,cat,60,40\na.png,1,2,3,4,cat,9,9\n")
    assert source.refusal("csv") == "boxes.csv:3: size 9x9 of a.png differs from boxes.csv:2"
    source.write("boxes.csv", "a.png 1 2 3 4 cat\n")
    assert source.refusal("csv").startswith(
        "boxes.csv:1: no columns found; expected file,x1,y1,x2,y2,class: 'a.png 1 2"
    )
    source.write("boxes.csv", "file,x1,y1,x2,y2,class\n")
    assert source.refusal("csv") == "boxes.csv: contains no boxes"
    (source.folder / "boxes.csv").write_bytes(b"a.png,1,2,3,4,cat\na.png,1,2,3,4,caf\xe9\n")
    assert source.refusal("csv") == "boxes.csv:2: not UTF-8: byte 0xe9; save it as UTF-8"
    source.write("more.csv", "")
    assert source.refusal("csv").endswith("give the path of one CSV file; found: boxes.csv, more.csv")


COLUMNS = {
    "file,x,y,w,h,class\na.png,1,2,30,20,cat\n": "x and y may be a corner or the center: write corners",
    "filename,file_size,region_count,region_shape_attributes\na.png,9,1,{}\n": "filename, file_size, region_count",
    "image,left,top,right,bottom,label\na.png,1,2,31,22,cat\n": "no column x1 or xmin or x_min among image, left",
}


@pytest.mark.parametrize(("text", "message"), COLUMNS.items())
def test_column_names_that_are_not_known(source, text, message):
    source.draw("a.png", 40, 60)
    source.write("boxes.csv", text)
    refusal = source.refusal("csv")
    assert refusal.startswith("boxes.csv:1: no column x1 or xmin or x_min among ") and message in refusal


def test_columns_and_images_that_are_not_read_are_reported(source, caplog):
    source.draw("a.png", 40, 60)
    source.draw("b.png", 40, 60)
    source.write("boxes.csv", "file,x1,y1,x2,y2,class,score,path\na.png,1,2,31,22,cat,0.5,b.png\n")
    source.bring_in("csv")
    assert "boxes.csv:1: columns that are not read: score, path" in caplog.text
    assert "images without a readable row in the table: 1 of 2; left out" in caplog.text


@pytest.mark.parametrize("row", ["a.png,1,2,31,22,0.9,cat", "a.png,1,2,31,22,ant, red"])
@pytest.mark.parametrize("head", ["", "file,x1,y1,x2,y2,class\n"])
def test_more_cells_than_columns(source, head, row):
    source.draw("a.png", 40, 60)
    source.write("boxes.csv", f"{head}{row}\n")
    assert f"7 columns, expected 6: {row}" in source.refusal("csv")


LAYOUTS = {
    "by name": ("train.csv", "val.csv", ""),
    "by a word of the name": ("train_labels.csv", "validation-labels.csv", ""),
    "by folder": ("train/_annotations.csv", "valid/_annotations.csv", "{}/"),
}


@pytest.mark.parametrize(("first", "second", "folder"), LAYOUTS.values(), ids=LAYOUTS)
def test_several_tables_are_splits(source, first, second, folder):
    """Paths are relative to each table; the classes of both are the classes of each."""
    for table, split, name in ((first, "train", "cat"), (second, "valid", "dog")):
        source.draw(f"{folder.format(split)}{name}.png", 40, 60)
        source.write(table, f"file,x1,y1,x2,y2,class\n{name}.png,1,2,31,22,{name}\n")
    splits = source.bring_in("csv")
    assert {name: content["images"][0]["file_name"] for name, content in splits.items()} == {
        "train": "cat.png",
        "val": "dog.png",
    }
    assert splits["train"]["categories"] == splits["val"]["categories"] and len(splits["val"]["categories"]) == 2


def test_an_image_in_two_tables(source, boxes_of):
    """It is in one split only; --skip-bad leaves it out of the later one."""
    for name in "ab":
        source.draw(f"{name}.png", 40, 60)
    source.write("train.csv", "a.png,1,2,31,22,cat\n")
    source.write("val.csv", "b.png,1,2,31,22,cat\na.png,1,2,3,4,cat\n")
    assert source.refusal("csv") == "val.csv:2: a.png is already the image of train.csv:1"
    splits = source.bring_in("csv", skip_bad=True)
    assert [boxes_of(splits[name])[0][0] for name in ("train", "val")] == ["a.png", "b.png"]


def test_tables_that_are_not_named_after_splits(source):
    for name in ("train.csv", "train_more.csv", "trainval.csv"):
        source.write(name, "a.png,1,2,31,22,cat\n")
    message = source.refusal("csv")
    assert "name them after their splits, such as train.csv and val.csv, or give the path of one CSV file" in message
    assert message.endswith("found: train.csv, train_more.csv, trainval.csv")
