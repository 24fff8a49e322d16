"""labelme files become COCO files; what is malformed is told with the number of its shape."""

import base64
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
    "long path": (
        content(RECTANGLE, imagePath="data:image/png;base64," + "A" * 9999),
        "a.json: no image data:image/png",
    ),
    "a group": (content(RECTANGLE | {"group_id": [1]}), "a.json: shape 1 (cat): group_id is not an integer: [1]"),
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


def shape(label, kind, *points, **more):
    return {"label": label, "shape_type": kind, "points": [list(point) for point in points]} | more


def test_shapes_of_a_group_and_label_are_one_object(source, boxes_of, caplog):
    """As labelme2coco.py joins them; the same group_id with another label is another object."""
    source.draw("a.png", 40, 60)
    left, right = ((1, 2), (7, 3), (4, 9)), ((20, 12), (30, 12), (25, 30))
    source.write(
        "a.json",
        content(
            shape("cat", "polygon", *left, group_id=1),
            shape("dog", "polygon", *left, group_id=1),
            shape("cat", "polygon", *left, group_id=None),
            shape("cat", "polygon", *right, group_id=1, difficult=True),
            shape("cat", "rectangle", (1, 1), (3, 3), group_id=2),
        ),
    )
    (found,) = source.bring_in("labelme", difficult="keep").values()
    assert [row[1:] for row in boxes_of(found)] == [
        ("cat", [1, 2, 29, 28]),
        ("dog", [1, 2, 6, 7]),
        ("cat", [1, 2, 6, 7]),
        ("cat", [1, 1, 2, 2]),
    ]
    assert [record.get("difficult", 0) for record in found["annotations"]] == [1, 0, 0, 0]
    assert "shapes joined to an object of the same group_id and label: 1" in caplog.text
    assert "3 of kind polygon; imported as the boxes around them" in caplog.text


def test_labels_that_are_no_classes(source, boxes_of, caplog):
    """`__ignore__` is a crowd region of each class, `_background_` nothing; labelme's list of labels has both."""
    source.draw("a.png", 40, 60)
    ignored, background = (
        shape("__ignore__", "rectangle", (5, 6), (15, 26)),
        shape("_background_", "rectangle", (0, 0), (9, 9)),
    )
    source.write("a.json", content(RECTANGLE, ignored, background, RECTANGLE | {"label": "dog"}))
    names = source.write("labels.txt", "__ignore__\n_background_\ndog\ncat\n")
    (found,) = source.bring_in("labelme", classes=names).values()
    assert [category["name"] for category in found["categories"]] == ["dog", "cat"]
    rows = [(*row[1:], record["iscrowd"]) for row, record in zip(boxes_of(found), found["annotations"], strict=True)]
    box, region = [10.5, 5, 9.5, 25], [5, 6, 10, 20]
    assert rows == [("cat", box, 0), ("dog", box, 0), ("dog", region, 1), ("cat", region, 1)]
    assert "regions to ignore: 1; written as crowd regions of each class" in caplog.text
    assert "shapes labeled _background_, left out: 1" in caplog.text


@pytest.mark.parametrize(
    ("kind", "points", "box"),
    [
        ("mask", ((5, 6), (14, 25)), [5, 6, 10, 20]),  # of pixels 5..14 and 6..25
        ("mask", ((5, 6), (5, 6)), [5, 6, 1, 1]),
        ("mask", ((5.4, 5.6), (14.4, 24.6)), [5, 6, 10, 20]),  # moved by the mouse; labelme rounds the first pixel
        ("rotation", ((20, 5), (35, 20), (20, 35), (5, 20)), [5, 5, 30, 30]),
        ("oriented_rectangle", ((20, 5), (35, 20), (20, 35), (5, 20)), [5, 5, 30, 30]),
        (None, ((1, 2), (7, 3), (4, 9)), [1, 2, 6, 7]),
        ("polygon", ((50, 30), (62, 30), (55, 43)), [50, 30, 10, 10]),  # clipped to the image
    ],
)
def test_boxes_of_other_shapes(source, boxes_of, caplog, kind, points, box):
    source.draw("a.png", 40, 60)
    source.write("a.json", content(shape("cat", kind, *points)))
    assert boxes_of(source.bring_in("labelme")["all"]) == [("a.png", "cat", box)]
    name = {"rotation": "rotated box", "oriented_rectangle": "rotated box", None: "polygon"}.get(kind, kind)
    assert f"objects outlined by other shapes than boxes: 1 of kind {name}; imported as the boxes around" in caplog.text
    is_clipped = "polygons and other outlines that reach beyond the image: 1 of 1; clipped" in caplog.text
    assert is_clipped == (points[0] == (50, 30))


def test_images_inside_the_files(source, boxes_of):
    """imageData is the image where no file is; a file beside has precedence, since it is the original."""
    data = base64.b64encode(source.draw("b.png", 40, 60).read_bytes()).decode()
    (source.folder / "b.png").unlink()
    source.draw("a.png", 40, 60)
    source.write("a.json", content(RECTANGLE, imageData=base64.b64encode(b"another").decode()))
    source.write("deep/b.json", content(RECTANGLE, imagePath="c:\\pictures\\b.png", imageData=data))
    assert source.refusal("labelme", transfer="leave") == (
        "--transfer leave: deep/b.json contains its image, which has no file; use copy or link"
    )
    (found,) = source.bring_in("labelme", transfer="link").values()
    assert [row[0] for row in boxes_of(found)] == ["a.png", "deep/b.png"]
    written = source.output / "all/deep/b.png"
    assert written.read_bytes() == base64.b64decode(data) and not written.is_symlink()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("x", "a.json: imageData is not base64: x"),
        (3, "a.json: imageData is not base64: 3"),
        (base64.b64encode(b"no image").decode(), "a.json: imageData is damaged or not an image"),
    ],
)
def test_image_data_that_is_no_image(source, data, message):
    source.write("a.json", content(RECTANGLE, imageData=data))
    assert source.refusal("labelme") == message


def test_images_without_a_file_are_counted(source, caplog):
    for name in ("a", "b", "deep/c"):
        source.draw(f"pictures/{name}.png", 40, 60)
    source.write("json/a.json", content(RECTANGLE, imagePath="../pictures/a.png"))
    source.bring_in("labelme", "json")
    assert "images without a readable JSON file: 2 of 3; left out" in caplog.text
