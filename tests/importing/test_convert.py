"""What an import writes: the same boxes whatever the format, images by copy or link, a folder whole or not at all."""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.importing.convert import import_data

TOOL = Path(__file__).parents[2] / "tools/import_data.py"
NAMES = ["ant", "bee", "cat"]


def drawn_boxes(source):
    """Six images, {name: (height, width, [(class, x1, y1, x2, y2)])}; up to four boxes each, some beyond the border."""
    rng = np.random.default_rng(5)
    truth = {}
    for number in range(6):
        height, width = rng.integers(20, 90, 2).tolist()
        source.draw(f"images/{number}.png", height, width)
        corners = np.sort(rng.integers(0, 60, (number % 5, 2, 2)), axis=1).reshape(-1, 4).tolist()
        truth[f"{number}.png"] = (height, width, [(NAMES[k % 3], *box) for k, box in enumerate(corners)])
    return truth


def as_voc(source, truth):
    """With origin 1: pixels count from 1, and the last one belongs to the box."""
    for name, (height, width, boxes) in truth.items():
        text = f"<annotation><size><width>{width}</width><height>{height}</height></size>"
        for label, x1, y1, x2, y2 in boxes:
            sides = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2))
            box = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
            text += f"<object><name>{label}</name><bndbox>{box}</bndbox></object>"
        source.write(f"Annotations/{Path(name).stem}.xml", text + "</annotation>")
    return {"voc_origin": 1}


def as_yolo(source, truth):
    source.write("classes.txt", "\n".join(NAMES))
    for name, (height, width, boxes) in truth.items():
        shares = [
            (NAMES.index(label), (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            for label, x1, y1, x2, y2 in boxes
        ]
        source.write(f"labels/{Path(name).stem}.txt", "\n".join(" ".join(map(repr, row)) for row in shares))
    return {}


def as_labelme(source, truth):
    for name, (height, width, boxes) in truth.items():
        shapes = [
            {"label": label, "shape_type": "rectangle", "points": [[x1, y1], [x2, y2]]}
            for label, x1, y1, x2, y2 in boxes
        ]
        content = {"imagePath": f"../images/{name}", "imageHeight": height, "imageWidth": width, "shapes": shapes}
        source.write(f"labelme/{Path(name).stem}.json", json.dumps(content))
    return {}


def as_cvat(source, truth):
    text = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n<meta><task/></meta>\n'
    for number, (name, (height, width, boxes)) in enumerate(truth.items()):
        text += f'<image id="{number}" name="{name}" width="{width}" height="{height}">\n'
        for label, x1, y1, x2, y2 in boxes:
            sides = f'xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"'
            text += f'<box label="{label}" source="manual" occluded="0" {sides} z_order="0"></box>\n'
        text += "</image>\n"
    source.write("annotations.xml", text + "</annotations>")
    return {}


def as_kitti(source, truth):
    (source.folder / "images").rename(source.folder / "image_2")
    for name, (*_, boxes) in truth.items():
        lines = [f"{b[0]} 0.00 0 -1.57 {b[1]} {b[2]} {b[3]} {b[4]} 1.5 1.6 3.7 1.0 1.5 20.0 -1.6" for b in boxes]
        source.write(f"label_2/{Path(name).stem}.txt", "\n".join(lines))
    return {}


def as_openimages(source, truth):
    """It has no rows for images without boxes."""
    (source.folder / "images/0.png").unlink()
    del truth["0.png"], truth["5.png"]
    (source.folder / "images/5.png").unlink()
    rows = ["ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"]
    for name, (height, width, boxes) in truth.items():
        for label, x1, y1, x2, y2 in boxes:
            sides = (x1 / width, x2 / width, y1 / height, y2 / height)
            rows.append(f"{Path(name).stem},xclick,/m/{label},1,{','.join(map(repr, sides))},0,0,0")
    source.write("annotations-bbox.csv", "\n".join(rows))
    source.write("class-descriptions-boxable.csv", "\n".join(f"/m/{name},{name}" for name in NAMES))
    return {}


def as_csv(source, truth):
    rows = [
        f"images/{name},{x1},{y1},{x2},{y2},{label}"
        for name, (*_, boxes) in truth.items()
        for label, x1, y1, x2, y2 in boxes
    ]
    rows += [f"images/{name},,,,," for name, (*_, boxes) in truth.items() if not boxes]
    source.write("boxes.csv", "\n".join(rows))
    return {}


WRITERS = {
    "voc": as_voc,
    "yolo": as_yolo,
    "labelme": as_labelme,
    "cvat": as_cvat,
    "kitti": as_kitti,
    "openimages": as_openimages,
    "csv": as_csv,
}


@pytest.mark.parametrize("form", WRITERS)
def test_a_round_trip(source, boxes_of, form):
    """Boxes written in a format come back, whatever the format, and training reads them."""
    truth = drawn_boxes(source)
    if form in ("yolo", "openimages"):  # have no boxes beyond the image
        for name, (height, width, boxes) in truth.items():
            limit = (width, height) * 2
            truth[name] = (height, width, [(b[0], *map(min, b[1:], limit)) for b in boxes])
    options = WRITERS[form](source, truth)
    (content,) = source.bring_in(form, **options).values()
    assert [(i["file_name"], i["height"], i["width"]) for i in content["images"]] == [
        (name, height, width) for name, (height, width, _) in truth.items()
    ]
    expected = [(name, label, *box) for name, (*_, boxes) in truth.items() for label, *box in boxes]
    found = [(name, label, x, y, x + w, y + h) for name, label, (x, y, w, h) in boxes_of(content)]
    assert [row[:2] for row in found] == [row[:2] for row in expected]
    np.testing.assert_allclose([row[2:] for row in found], [row[2:] for row in expected], atol=1e-12)
    assert [category["name"] for category in content["categories"]] == NAMES
    dataset = CocoDataset(str(source.output / "all"), str(source.output / "annotations/instances_all.json"))
    dataset.check_images()
    assert dataset.load(list(truth).index("3.png")).shape == (*truth["3.png"][:2], 3)


HINTS = {"voc": ("Annotations", "Annotations/1.xml"), "yolo": ("labels", "labels/1.txt"), "csv": ("boxes.csv",)}


@pytest.mark.parametrize(("form", "given"), [*((f, g) for f in HINTS for g in HINTS[f]), ("labelme", "labelme")])
def test_the_command_that_an_error_names(source, form, given):
    """What is given as COCO annotations and is of another format is named, with the command that imports it."""
    WRITERS[form](source, {name: (h, w, [("cat", 1, 2, 9, 9)]) for name, (h, w, _) in drawn_boxes(source).items()})
    with pytest.raises(UserError, match="import it: ") as caught:
        CocoDataset(str(source.folder / "images"), str(source.folder / given))
    words = str(caught.value).split()
    at = words.index("--from")
    assert words[at - 1 : at + 2] == ["import-data", "--from", form] and words[at + 3 :] == ["--output", "DIR"]
    (content,) = source.bring_in(words[at + 1], words[at + 2]).values()
    assert len(content["annotations"]) == 6


def one_box(source, **options):
    source.draw("deep/a.jpg", 40, 60, **options)
    source.write("boxes.csv", "deep/a.jpg,1,2,31,22,cat\n")
    return source


@pytest.mark.parametrize("transfer", ["copy", "link", "leave"])
def test_what_becomes_of_the_images(source, transfer):
    one_box(source).bring_in("csv", transfer=transfer)
    place = source.output / "all/a.jpg"
    assert place.is_symlink() == (transfer == "link") and place.exists() == (transfer != "leave")
    if transfer != "leave":
        assert place.read_bytes() == (source.folder / "deep/a.jpg").read_bytes()


def test_the_sets_are_returned_as_a_config_names_them(source, monkeypatch):
    monkeypatch.chdir(one_box(source).folder)
    for transfer, images in (("copy", "copy/all"), ("leave", str(source.folder / "deep"))):
        dataset = import_data("csv", Path("boxes.csv"), Path(transfer), transfer=transfer)["all"]
        assert (str(dataset.images), dataset.file) == (images, f"{transfer}/annotations/instances_all.json")


def test_sizes_are_those_of_the_images_as_shown(source):
    one_box(source, orientation=6)
    assert source.bring_in("csv")["all"]["images"] == [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 60}]
    shutil.rmtree(source.output)
    source.write("boxes.csv", "file,x1,y1,x2,y2,class,width,height\ndeep/a.jpg,1,2,31,22,cat,60,40\n")
    message = source.refusal("csv")
    assert message.startswith("boxes.csv:2: has size 60x40, but deep/a.jpg is 40x60 (width x height); annotate it as")


def test_swapped_sizes_are_corrected_and_reported(source, caplog):
    one_box(source).write("boxes.csv", "file,x1,y1,x2,y2,class,width,height\ndeep/a.jpg,1,2,51,22,cat,40,60\n")
    assert source.bring_in("csv")["all"]["images"][0]["width"] == 60
    assert "images with swapped width and height: 1 of 1; taken from the files; the first: " in caplog.text


def test_classes_in_a_given_order(source):
    names = source.write("names.txt", "# my classes\ndog\n cat\n")
    content = one_box(source).bring_in("csv", classes=names)["all"]
    assert [category["name"] for category in content["categories"]] == ["dog", "cat"]
    assert content["annotations"][0]["category_id"] == 2
    shutil.rmtree(source.output)
    source.write("names.txt", "dog\n")
    assert source.refusal("csv", classes=names) == "boxes.csv:1: the class 'cat' is not in names.txt"
    source.write("names.txt", "cat\ncat\n")
    assert source.refusal("csv", classes=names) == "names.txt:2: the class 'cat' is repeated"


def test_nearly_equal_class_names_are_reported(source, caplog):
    one_box(source).write("boxes.csv", "deep/a.jpg,1,2,3,4,cat\ndeep/a.jpg,1,2,3,4,Cat\ndeep/a.jpg,1,2,3,4,dog\n")
    assert len(source.bring_in("csv")["all"]["categories"]) == 3
    assert "classes with nearly equal names: 'Cat', 'cat'" in caplog.text


def test_refusals_of_options(source):
    one_box(source)
    assert source.refusal("csv", voc_origin=1).startswith("--voc-origin 1 applies only to VOC")
    assert source.refusal("csv", difficult="keep").endswith("does not mark objects as difficult; remove the option")
    assert source.refusal("csv", images=source.folder / "no").startswith("--images no: no such folder")
    assert source.refusal("yolo", classes=source.folder / "names.txt").startswith(
        "--classes: YOLO takes the classes from"
    )
    assert source.refusal("voc", "no").startswith("no: no such file or folder")
    assert source.refusal("voc").endswith("contains no .xml file; correct the path or --from")
    source.write("boxes.csv", "deep/a.jpg,,,,,\n")
    assert source.refusal("csv").startswith("no image has objects")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are Unicode")
def test_an_image_whose_name_is_no_text(source):
    os.rename(source.draw("a.png", 4, 4), os.fsencode(source.folder) + b"/caf\xe9.png")
    source.write("classes.txt", "cat\n")
    (Path(os.fsdecode(os.fsencode(source.folder) + b"/caf\xe9.txt"))).write_text("0 0.5 0.5 0.5 0.5")
    assert "the image's name is not UTF-8: 'caf\\udce9.png'; rename it" in source.refusal("yolo")


def test_an_output_that_is_in_use(source):
    one_box(source)
    source.output.mkdir()
    (source.output / "mine").write_text("kept")
    with pytest.raises(UserError, match="exists and is not empty; choose another output"):
        import_data("csv", source.folder, source.output)
    (source.output / "mine").unlink()
    assert source.bring_in("csv")["all"]["annotations"]


def test_nothing_is_left_where_writing_fails(source, monkeypatch):
    def full(path, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert (
        one_box(source)
        .refusal("csv")
        .endswith("output: cannot be written: No space left on device; free space or choose another output")
    )


def test_the_command(source, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["import_data.py", *map(str, arguments)])
        try:
            runpy.run_path(str(TOOL), run_name="__main__")
        except SystemExit as ended:
            return ended.code, capsys.readouterr()
        return 0, capsys.readouterr()

    for width, name in enumerate("abcd", start=60):  # files that differ, so that they can be in different splits
        source.draw(f"{name}.png", 40, width)
    source.write("boxes.csv", "".join(f"{name}.png,1,2,3,4,cat\n" for name in "abcd"))
    command = ["--from", "csv", source.folder, "--output", source.output]
    code, told = run(*command, "--split", "0.8/0.3")
    assert code == 2 and told.err.startswith("error: --split 0.8/0.3: expected two or three fractions")
    code, told = run(*command, "--seed", "1")
    assert code == 2 and "--seed is 0 or more and requires --split" in told.err and not source.output.exists()
    code, told = run(*command, "--split", "0.75/0.25", "--seed", "1")
    assert (
        code == 0 and len(json.loads((source.output / "annotations/instances_train.json").read_text())["images"]) == 3
    )
    line = f"  val: {{images: {source.output}/val, annotations: {source.output}/annotations/instances_val.json}}"
    assert line in told.out.splitlines()
