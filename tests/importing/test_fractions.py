"""Boxes that are fractions of their image's size are refused, whatever the format they come in."""

import json

import pytest

HINT = "; are they fractions of the image's size? convert them to pixels"


def test_csv_with_fractions(source):
    source.draw("a.png", 40, 60)
    source.draw("b.png", 40, 60)
    source.write("boxes.csv", "a.png,0.1,0.2,0.55,1.0,cat\nb.png,,,,,\nb.png,0,0,1,1,cat\n")
    expected = "boxes.csv:1: 2 of 2 boxes have only values from 0 to 1, the first [0.1, 0.2, 0.55, 1.0]"
    assert source.refusal("csv") == expected + HINT


def test_labelme_with_fractions(source):
    source.draw("a.png", 40, 60)
    shape = {"label": "cat", "shape_type": "rectangle", "points": [[0.1, 0.2], [0.5, 0.7]]}
    content = {"imagePath": "a.png", "imageHeight": 40, "imageWidth": 60, "shapes": [shape]}
    source.write("a.json", json.dumps(content))
    expected = "a.json: 1 of 1 boxes have only values from 0 to 1, the first [0.1, 0.2, 0.5, 0.7]"
    assert source.refusal("labelme") == expected + HINT


def test_one_split_with_fractions(source):
    for name in "abcd":
        source.draw(f"{name}.png", 40, 60)
    rows = ["a.png,1,2,30,20,cat", "b.png,5,6,30,20,cat", "c.png,0.1,0.2,0.5,0.7,cat", "d.png,0,0,1,1,cat"]
    source.write("boxes.csv", "\n".join(rows))
    source.write("train.txt", "a.png\nb.png\n")
    source.write("val.txt", "c.png\nd.png\n")
    lists = [source.folder / "train.txt", source.folder / "val.txt"]
    expected = "boxes.csv:3: 2 of 2 boxes have only values from 0 to 1, the first [0.1, 0.2, 0.5, 0.7]"
    assert source.refusal("csv", "boxes.csv", lists=lists) == expected + HINT


@pytest.mark.parametrize("row", ["0,0,2,1", "0.5,0.5,3,3"])
def test_small_boxes_in_pixels_are_no_fractions(source, boxes_of, row):
    source.draw("a.png", 40, 60)
    source.write("boxes.csv", f"a.png,{row},cat\n")
    (content,) = source.bring_in("csv").values()
    x1, y1, x2, y2 = map(float, row.split(","))
    assert boxes_of(content) == [("a.png", "cat", [x1, y1, x2 - x1, y2 - y1])]
