"""labelme files become COCO files; what is malformed is told with the number of its shape."""

import json
import math

import pytest

RECTANGLE = {"label": "cat", "points": [[20, 30], [10.5, 5]], "shape_type": "rectangle"}


def content(*shapes, **more):
    return json.dumps({"shapes": shapes, "imagePath": "a.png", "imageHeight": 40, "imageWidth": 60} | more)


def test_shapes(source, boxes_of):
    """A rectangle's corners come in any order; the others give the boxes around them."""
    source.draw("a.png", 40, 60)
    triangle = {"label": " ant ", "points": [[1, 2], [7, 3], [4, 9]], "difficult": True}
    circle = {"label": "cat", "points": [[20, 20], [23, 24]], "shape_type": "circle"}
    source.write("a.json", content(RECTANGLE, triangle | {"shape_type": "polygon"}, circle))
    source.write("b.json", content(imagePath="..\\source\\deep\\b.png", imageHeight=None))
    source.draw("deep/b.png", 10, 10)
    (found,) = source.bring_in("labelme").values()
    assert boxes_of(found) == [
        ("a.png", "cat", [10.5, 5, 9.5, 25]),
        ("a.png", "ant", [1, 2, 6, 7]),
        ("a.png", "cat", [15, 15, 10, 10]),
    ]
    assert [record["iscrowd"] for record in found["annotations"]] == [0, 1, 0]
    assert [category["name"] for category in found["categories"]] == ["ant", "cat"]


def test_images_elsewhere(source):
    source.draw("pictures/a.png", 40, 60)
    source.write("labels/a.json", content(RECTANGLE))
    assert source.refusal("labelme", "labels").startswith(
        "labels/a.json: no image a.png (imagePath), expected at labels/a.png; give --images"
    )
    assert source.bring_in("labelme", "labels", images=source.folder / "pictures")["all"]["annotations"]


MALFORMED = {
    "no JSON": ('{"shapes": [\n}', "a.json:2: not JSON: "),
    "COCO": ('{"images": []}', "a.json: not labelme JSON: it has no list of shapes"),
    "no image": (content(RECTANGLE, imagePath=None), "a.json: imagePath is not a file name: null"),
    "size": (content(RECTANGLE, imageWidth="wide"), "a.json: the image's width is not a number: 'wide'"),
    "another size": (content(RECTANGLE, imageWidth=90), "a.json: has size 90x40, but a.png is 60x40"),
    "a point": (
        content(RECTANGLE, RECTANGLE | {"shape_type": "point"}),
        "a.json: shape 2 (cat): shape type point has no box",
    ),
    "one point": (
        content(RECTANGLE | {"points": [[1, 2]]}),
        "a.json: shape 1 (cat): a rectangle needs at least 2 points",
    ),
    "no points": (content(RECTANGLE | {"points": None}), "a.json: shape 1 (cat): a rectangle needs at least 2 points"),
    "three numbers": (
        content(RECTANGLE | {"points": [[1, 2], [3, 4, 5]]}),
        "a.json: shape 1 (cat): a point must be two",
    ),
    "text": (content(RECTANGLE | {"points": [[1, 2], [3, "4"]]}), "a.json: shape 1 (cat): a point must be two numbers"),
    "infinite": (
        content(RECTANGLE | {"points": [[1, 2], [3, math.inf]]}),
        "a.json: shape 1 (cat): a point must be two",
    ),
    "no label": (content(RECTANGLE | {"label": 3}), "a.json: shape 1: label is not text: 3"),
    "empty label": (content(RECTANGLE | {"label": ""}), "a.json: shape 1: missing or unprintable class name: ''"),
    "difficult": (content(RECTANGLE | {"difficult": "x"}), "a.json: shape 1 (cat): difficult is neither true nor fal"),
    "no mapping": (content([1, 2]), "a.json: shape 1: not a JSON object"),
    "deep": ("[" * 100000, "a.json: not labelme JSON: maximum recursion depth exceeded"),
    "huge": (
        content(RECTANGLE | {"points": [[1, 2], [3, 10**400]]}),
        "a.json: shape 1 (cat): a point must be two numbers",
    ),
    "digits": ('{"shapes": [%s]}' % ("9" * 5000), "a.json: not labelme JSON: Exceeds the limit"),
}


@pytest.mark.parametrize(("text", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_files(source, text, message):
    source.draw("a.png", 40, 60)
    source.write("a.json", text)
    assert source.refusal("labelme").startswith(message)
