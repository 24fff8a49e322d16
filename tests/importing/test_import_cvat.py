"""CVAT's XML for images becomes COCO files: shapes, tasks, projects with subsets, and what is refused."""

import pytest

HEAD = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task/></meta>\n'
BOX = '<box label="cat" occluded="1" source="manual" xtl="1.50" ytl="2" xbr="31" ybr="22" z_order="0">{}</box>'
SIDES = 'xtl="10" ytl="10" xbr="30" ybr="20"'


def image(shapes, name="a.png", more=""):
    return f'<image id="0" name="{name}" {more} width="60" height="40">\n{shapes}\n</image>\n'


def write(source, *images, name="annotations.xml"):
    return source.write(name, HEAD + "".join(images) + "</annotations>\n")


CORNERS = {
    "tl": (10, 12),
    "bl": (10, 25),
    "tr": (20, 12),
    "br": (20, 25),
}  # of the front; the back is 4 right and above
CUBOID = " ".join(
    f'x{corner}1="{x}" y{corner}1="{y}" x{corner}2="{x + 4}" y{corner}2="{y - 4}"' for corner, (x, y) in CORNERS.items()
)
SHAPES = {
    "box": (BOX.format(""), [1.5, 2, 29.5, 20]),
    "box turned by a quarter": (f'<box label="cat" {SIDES} rotation="90.0"/>', [15, 5, 10, 20]),
    "box turned by 30 degrees": (  # 20 cos + 10 sin wide, 20 sin + 10 cos high
        f'<box label="cat" {SIDES} rotation="30"/>',
        [20 - 22.3205080757 / 2, 15 - 18.6602540378 / 2, 22.3205080757, 18.6602540378],
    ),
    "box upside down": (f'<box label="cat" {SIDES} rotation="180"/>', [10, 10, 20, 10]),
    "polygon": ('<polygon label="cat" points="5.5,6;20,8.5;11,30"/>', [5.5, 6, 14.5, 24]),
    "ellipse": ('<ellipse label="cat" cx="20" cy="15" rx="10" ry="5"/>', [10, 10, 20, 10]),
    "ellipse turned": ('<ellipse label="cat" cx="20" cy="15" rx="10" ry="5" rotation="90"/>', [15, 5, 10, 20]),
    "mask": ('<mask label="cat" rle="1, 2" left="7" top="8" width="13" height="15"/>', [7, 8, 13, 15]),
    "cuboid": (f'<cuboid label="cat" {CUBOID}/>', [10, 8, 14, 17]),
}


@pytest.mark.parametrize(("shape", "box"), SHAPES.values(), ids=SHAPES)
def test_the_boxes_of_shapes(source, boxes_of, caplog, shape, box):
    source.draw("images/a.png", 40, 60)
    write(source, image(shape))
    ((name, label, found),) = boxes_of(source.bring_in("cvat")["all"])
    assert (name, label) == ("a.png", "cat") and found == pytest.approx(box)
    is_plain = shape.startswith("<box") and ("rotation" not in shape or "180" in shape)
    assert ("imported as the boxes around them" in caplog.text) == (not is_plain)


def test_attributes_and_tags(source, boxes_of, caplog):
    """The attribute `difficult` is used, others are reported; a label of a whole image is no object."""
    source.draw("a.png", 40, 60)
    difficult = BOX.format('<attribute name="difficult">true</attribute><attribute name="color">red</attribute>')
    write(source, image(difficult + BOX.format('<attribute name="difficult">false</attribute>') + '<tag label="day"/>'))
    content = source.bring_in("cvat", "annotations.xml")["all"]
    assert [annotation["iscrowd"] for annotation in content["annotations"]] == [1, 0]
    assert [category["name"] for category in content["categories"]] == ["cat"]
    assert "attributes 'color' of objects that are not read: 1" in caplog.text
    assert "tags of images that are not read: 1" in caplog.text


def test_several_tasks_and_images_in_folders(source, boxes_of):
    """Each task is a folder with an XML file and its images, of the same names; an image without objects is kept."""
    for task, width in (("one", 60), ("two", 60)):
        source.draw(f"{task}/images/deep/a.png", 40, width)
        source.draw(f"{task}/images/b.png", 40, width)
        name = "deep/a.png" if task == "one" else "elsewhere\\a.png"  # the name of the file alone is enough
        write(source, image(BOX.format(""), name), image("", "b.png"), name=f"{task}/annotations.xml")
    content = source.bring_in("cvat")["all"]
    assert [row[0] for row in boxes_of(content)] == ["one/images/deep/a.png", "two/images/deep/a.png"]
    assert len(content["images"]) == 4


def test_subsets_of_a_project(source, caplog):
    for name in ("Train/a.png", "Validation/a.png"):
        source.draw(f"images/{name}", 40, 60)
    images = [image(BOX.format(""), more=f'subset="{subset}" task_id="1"') for subset in ("Train", "Validation")]
    write(source, *images)
    splits = source.bring_in("cvat")
    assert {name: len(content["images"]) for name, content in splits.items()} == {"train": 1, "val": 1}


def test_other_subsets_are_not_splits(source, caplog):
    for name in ("Train/a.png", "mine/b.png"):
        source.draw(f"images/{name}", 40, 60)
    write(source, *(image(BOX.format(""), f"{n}.png", f'subset="{s}"') for n, s in (("a", "Train"), ("b", "mine"))))
    assert list(source.bring_in("cvat")) == ["all"]
    assert "subsets are not used as splits: 'mine' is none of train, validation and test" in caplog.text


MALFORMED = {
    "a line": ('<polyline label="cat" points="1,2;3,4"/>', "<polyline> (cat) has no box; supported are box, polygon"),
    "points": ('<points label="cat" points="1,2"/>', "<points> (cat) has no box"),
    "a skeleton": ('<skeleton label="cat"><points/></skeleton>', "<skeleton> (cat) has no box"),
    "no label": (f"<box {SIDES}/>", "<box> has no attribute label"),
    "an empty label": (f'<box label=" " {SIDES}/>', "missing or unprintable class name: ' '"),
    "a side missing": ('<box label="cat" xtl="1" ytl="2" xbr="3"/>', "<box> has no attribute ybr"),
    "no number": (f'<box label="cat" {SIDES.replace("30", "x")}/>', "xbr is not a number: 'x'"),
    "interchanged": (f'<box label="cat" {SIDES.replace("30", "3")}/>', "the second corner is left of or above the"),
    "a rotation": (f'<box label="cat" {SIDES} rotation="left"/>', "rotation is not a number: 'left'"),
    "two points": ('<polygon label="cat" points="1,2;3,4"/>', "points is not x,y;x,y;... of 3 or more points: 1,2;3,4"),
    "half a point": ('<polygon label="cat" points="1,2;3,4;5"/>', "points is not x,y;x,y;... of 3 or more points"),
    "a flag": (
        BOX.format('<attribute name="difficult">maybe</attribute>'),
        "difficult is neither true nor false: maybe",
    ),
}


@pytest.mark.parametrize(("shape", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_shapes(source, boxes_of, shape, message):
    """The line is named; with skip_bad only the shape is left out."""
    source.draw("a.png", 40, 60)
    write(source, image(f"{BOX.format('')}\n{shape}"))
    assert source.refusal("cvat").startswith(f"annotations.xml:7: {message}")
    assert boxes_of(source.bring_in("cvat", skip_bad=True)["all"]) == [("a.png", "cat", [1.5, 2, 29.5, 20])]


def test_other_refusals(source):
    source.draw("a.png", 40, 60)
    write(source, image(BOX.format(""), "gone.png"))
    assert (
        source.refusal("cvat")
        == "annotations.xml:5: no image gone.png in " + str(source.folder) + "; give the folder by --images"
    )
    write(source, image(BOX.format("")).replace(' name="a.png"', ""))
    assert source.refusal("cvat") == "annotations.xml:5: <image> has no attribute name"
    write(source, image(BOX.format("")).replace('"60"', '"70"'))
    assert source.refusal("cvat").startswith("annotations.xml:5: has size 70x40, but a.png is 60x40 (width x height)")
    write(source, '<track id="0" label="cat"></track>\n')
    assert source.refusal("cvat").startswith("annotations.xml:5: <track> is of CVAT for video; export the task as CVAT")
    write(source)
    assert source.refusal("cvat").startswith("annotations.xml:2: <annotations> has no <image>")
    source.write("annotations.xml", "<annotation></annotation>")
    assert source.refusal("cvat") == (
        "annotations.xml:1: <annotation> is not CVAT's <annotations>; import it with --from voc"
    )
    source.write("annotations.xml", HEAD)
    assert source.refusal("cvat").startswith("annotations.xml:5: not well-formed XML")


def test_images_elsewhere(source, boxes_of):
    write(source, image(BOX.format("")))
    elsewhere = source.draw("../pictures/sub/a.png", 40, 60).parents[1]
    assert len(boxes_of(source.bring_in("cvat", images=elsewhere)["all"])) == 1


def test_skip_bad_leaves_out_files_and_images(source):
    source.draw("a.png", 40, 60)
    write(source, image(BOX.format("")), image(BOX.format(""), "gone.png"))
    source.write("voc.xml", "<annotation></annotation>")
    assert len(source.bring_in("cvat", skip_bad=True)["all"]["images"]) == 1
    rows = (source.output / "skipped.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[0].rsplit("/", 1)[1] for row in rows[1:]] == ["annotations.xml", "voc.xml"]
