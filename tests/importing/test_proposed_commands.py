"""What is given as COCO annotations but is of another format is named, with a command that imports it as it is."""

import json
import shlex

import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.importing.convert import import_data

BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>31</xmax><ymax>22</ymax></bndbox>"
VOC = f"<annotation><object><name>cat</name>{BOX}</object></annotation>"
RECTANGLE = {"label": "cat", "shape_type": "rectangle", "points": [[1, 2], [31, 22]]}
LABELME = json.dumps({"imagePath": "a.png", "shapes": [RECTANGLE]})
YOLO = "0 0.2666666666666667 0.3 0.5 0.5\n"
CVAT = '<annotations>\n<meta/>\n<image id="0" name="a.png">{}</image>\n</annotations>'
CVAT_BOX = CVAT.format('<box label="cat" xtl="1" ytl="2" xbr="31" ybr="22"/>')
KITTI = "cat 0.00 0 -1.57 1 2 31 22 1.5 1.6 3.7 1.0 1.5 20.0 -1.6\n"
OPENIMAGES = f"ImageID,LabelName,XMin,XMax,YMin,YMax\na,cat,{1 / 60!r},{31 / 60!r},0.05,0.55\n"
SOURCES = {  # files of a source, and which of them or which folder is given as COCO annotations
    "voc": ({"Annotations/a.xml": VOC}, ("Annotations", "Annotations/a.xml", ".")),
    "voc in a folder": ({"Annotations/deep/a.xml": VOC}, ("Annotations/deep/a.xml",)),
    "labelme": ({"json/a.json": LABELME}, ("json", "json/a.json")),
    "yolo": ({"labels/a.txt": YOLO, "classes.txt": "cat\n"}, ("labels", "labels/a.txt", ".")),
    "yolo with the class names in labels": ({"labels/a.txt": YOLO, "labels/classes.txt": "cat\n"}, ("labels",)),
    "csv": ({"boxes.csv": "a.png,1,2,31,22,cat\n"}, ("boxes.csv", ".")),
    "cvat": ({"annotations.xml": CVAT_BOX}, ("annotations.xml", ".")),
    "kitti": ({"label_2/a.txt": KITTI}, ("label_2", "label_2/a.txt", ".")),
    "openimages": ({"boxes.csv": OPENIMAGES}, ("boxes.csv", ".")),
    "two csv": ({"boxes.csv": "a.png,1,2,31,22,cat\n", "more.csv": "x,y\n"}, (".",)),
}


def proposal(images, annotations):
    """Return the arguments of the command in the message, or the message if it has none."""
    with pytest.raises(UserError) as caught:
        CocoDataset(str(images), str(annotations))
    _, _, command = str(caught.value).partition("ppdet-lite import-data ")
    return shlex.split(command) if command else str(caught.value)


@pytest.mark.parametrize("images", ["images", "pictures/of day 1"])
@pytest.mark.parametrize(("kind", "given"), [(kind, given) for kind in SOURCES for given in SOURCES[kind][1]])
def test_the_command_works_as_it_is(source, boxes_of, kind, given, images):
    """The images are where the import looks for them, or in a folder that it cannot know; paths contain spaces."""
    source.folder = source.folder / "my data"
    for name, text in SOURCES[kind][0].items():
        source.write(name, text.replace("a.png", "images/a.png") if "csv" in kind and images == "images" else text)
    folder = source.folder if images == "images" else source.folder.parent
    source.draw(f"{folder}/{images}/deep/a.png" if "folder" in kind else f"{folder}/{images}/a.png", 40, 60)
    words = proposal(folder / images, source.folder / given)
    assert words[0] == "--from" and words[-2:] == ["--output", "DIR"]
    options = dict(zip(words[3:-2:2], words[4:-2:2], strict=True))
    needed = images != "images" or kind == "labelme"
    assert options == ({"--images": str(folder / images)} if needed else {})
    import_data(words[1], type(folder)(words[2]), source.output, *[type(folder)(v) for v in options.values()])
    content = json.loads((source.output / "annotations/instances_all.json").read_text())
    ((_, name, box),) = boxes_of(content)
    assert name == "cat" and box == pytest.approx([1, 2, 30, 20])


def test_images_that_are_nowhere_are_asked_for(source):
    path = source.write("Annotations/a.xml", VOC)
    assert proposal(source.folder / "no", path)[3:5] == ["--images", "DIR"]


def test_class_names_that_are_missing_are_asked_for(source):
    source.draw("images/a.png", 40, 60)
    path = source.write("labels/a.txt", YOLO)
    with pytest.raises(UserError, match=rf"write the class names into {source.folder}/classes.txt, one on each line"):
        CocoDataset(str(source.folder / "images"), str(path))


VIDEO = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<meta/><track id="0"/></annotations>'


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (VIDEO, "CVAT's XML for video"),
        (VOC.replace("bndbox", "robndbox"), "XML without VOC's <bndbox>"),
        (VOC.replace("bndbox", "polygon"), "XML without VOC's <bndbox>"),
    ],
)
def test_xml_that_cannot_be_imported(source, text, name):
    """No command is proposed for it; the import names CVAT's root element too."""
    path = source.write("Annotations/a.xml", text)
    source.draw("images/a.png", 40, 60)
    message = proposal(source.folder / "images", path)
    assert message.endswith(f"{name}, not COCO JSON; export it as COCO or Pascal VOC")
    refusal = source.refusal("voc")
    assert ("import CVAT's tasks with --from cvat" in refusal) == (text == VIDEO)


def test_labelme_json_that_is_cut(source):
    path = source.write("a.json", LABELME[:-9])
    assert proposal(source.folder, path)[:3] == ["--from", "labelme", str(source.folder)]
    assert "not JSON" in source.refusal("labelme")


def test_voc_in_utf_16(source):
    source.draw("images/a.png", 40, 60)
    path = source.write("Annotations/a.xml", "")
    path.write_bytes(VOC.encode("utf-16"))
    assert proposal(source.folder / "images", path)[:2] == ["--from", "voc"]
