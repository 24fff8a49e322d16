"""YOLO folders become COCO files; what is malformed is told with its line."""

import logging
import shutil

import numpy as np
import pytest

YAML = "path: .\ntrain: images/train\nval: images/val\nnames: [cat, ant]\n"


def two_images(source):
    source.draw("images/train/a.png", 40, 60)
    source.draw("images/train/deep/b.png", 100, 200)
    source.draw("images/val/c.png", 20, 10)
    source.write("labels/train/a.txt", "1.0 0.5 0.25 0.5 0.5\n\n0 0.25 0.5 0.5 1\n")
    source.write("labels/train/deep/b.txt", "0 0.1 0.2 0.5 0.8 0.3 0.1\n")
    source.write("data.yaml", YAML)
    return source


def test_a_folder_with_its_yaml(source, boxes_of):
    splits = two_images(source).bring_in("yolo")
    assert list(splits) == ["train", "val"]
    assert all(
        content["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "ant"}] for content in splits.values()
    )
    assert [(image["file_name"], image["height"], image["width"]) for image in splits["train"]["images"]] == [
        ("a.png", 40, 60),
        ("deep/b.png", 100, 200),
    ]
    (_, second, a), (_, first, b), (_, third, c) = boxes_of(splits["train"])
    assert (second, first, third) == ("ant", "cat", "cat")
    assert a == pytest.approx([15, 0, 30, 20]) and b == pytest.approx([0, 0, 30, 40])
    assert c == pytest.approx([20, 10, 80, 70])  # the box of the polygon
    assert len(splits["val"]["images"]) == 1 and splits["val"]["annotations"] == []
    assert (source.output / "train/deep/b.png").is_file()


def test_shares_are_of_the_image_as_it_is_shown(source, boxes_of):
    source.draw("images/a.jpg", 40, 60, orientation=6)  # shown 60 high, 40 wide
    source.write("labels/a.txt", "0 0.5 0.5 0.5 0.5")
    source.write("classes.txt", "cat\n")
    (content,) = source.bring_in("yolo").values()
    assert content["images"] == [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 60}]
    assert boxes_of(content) == [("a.jpg", "cat", [10, 15, 20, 30])]


def test_text_files_beside_the_images_and_folders_as_splits(source):
    for name in ("train/a", "valid/b"):
        source.draw(f"{name}.png", 40, 60)
        source.write(f"{name}.txt", "0 0.5 0.5 0.5 0.5")
    source.write("classes.txt", "cat\n")
    assert {name: len(content["annotations"]) for name, content in source.bring_in("yolo").items()} == {
        "train": 1,
        "val": 1,
    }


def test_what_exporters_write_in_the_yaml(source, caplog):
    """Folders above the file that are beside it, a test set that is not there, numbered names, a list of images."""
    two_images(source)
    source.write("val.txt", "images/val/c.png\n")
    source.write(
        "data.yaml", "train: ../images/train\nval: val.txt\ntest: ../test/images\nnc: 2\nnames: {1: ant, 0: cat}"
    )
    splits = source.bring_in("yolo", source="data.yaml")
    assert list(splits) == ["train", "val"] and splits["val"]["images"][0]["file_name"] == "c.png"
    assert splits["val"]["categories"][0]["name"] == "cat"
    assert "data.yaml:3: test: ../test/images does not exist: left out" in caplog.text
    assert "images without text file: 1 of 3; imported without objects" in caplog.text


def test_a_yaml_of_names_alone(source):
    two_images(source).write("data.yaml", "nc: 2\nnames: [cat, ant]\n")
    splits = source.bring_in("yolo", images=source.folder / "images")
    assert {name: len(content["annotations"]) for name, content in splits.items()} == {"train": 3, "val": 0}


def test_text_files_without_an_image_are_told(source, caplog):
    two_images(source).write("labels/train/gone.txt", "0 0.5 0.5 0.5 0.5\n")
    source.bring_in("yolo")
    assert "text files without image: 1; left out; the first: " in caplog.text


LINES = {
    "a class too high": ("2 0.5 0.5 0.1 0.1", "'2' is not a class index from 0 to 1"),
    "a class below 0": ("-1 0.5 0.5 0.1 0.1", "'-1' is not a class index"),
    "a class by name": ("cat 0.5 0.5 0.1 0.1", "'cat' is not a class index"),
    "an index": ("² 0.5 0.5 0.1 0.1", "'²' is not a class index"),
    "a class with a fraction": ("0.5 0.5 0.5 0.1 0.1", "'0.5' is not a class index"),
    "three numbers": ("0 0.5 0.5 0.1", "3 numbers after the class, expected x y w h, or a polygon"),
    "a confidence": (
        "0 0.5 0.5 0.1 0.1 0.9",
        "5 numbers after the class, expected x y w h, or a polygon; are these pre",
    ),
    "pixels": ("0 30 20 10 10", "30 is not between 0 and 1, relative to the image; is it in pixels?"),
    "below 0": ("0 0.5 0.5 -0.1 0.1", "-0.1 is not between 0 and 1"),
    "no number": ("0 0.5 0,5 0.1 0.1", "a coordinate is not a number: '0,5'"),
    "not finite": ("0 0.5 nan 0.1 0.1", "a coordinate is not a number: 'nan'"),
}


@pytest.mark.parametrize(("line", "message"), LINES.values(), ids=LINES)
def test_malformed_lines(source, line, message):
    two_images(source).write("labels/train/a.txt", f"0 0.5 0.5 0.1 0.1\n{line}\n")
    assert source.refusal("yolo").startswith(f"labels/train/a.txt:2: {message}")


CONFIGS = {
    "no names": ("train: images/train\n", "data.yaml:1: `names`, the class names, is missing"),
    "names of another number": (YAML + "nc: 3\n", "data.yaml:5: nc is 3, but names has 2 entries"),
    "a gap": (YAML.replace("[cat, ant]", "{0: cat, 2: ant}"), "data.yaml:4: names are numbered 0, 2; expected 0 to 1"),
    "a name twice": (YAML.replace("ant", "cat"), "data.yaml:4: the class 'cat' is repeated"),
    "an empty name": (YAML.replace("ant", '" "'), "data.yaml:4: missing or unprintable class name: ' '"),
    "names is text": (YAML.replace("[cat, ant]", "cat"), "data.yaml:4: names is not a list of class names"),
    "a folder not there": (YAML.replace("images/val", "img/val"), "data.yaml:3: val: img/val does not exist; correct"),
    "a path that is none": ("names: [cat, ant]\ntrain: 3\n", "data.yaml:2: not a path: 3"),
    "no YAML": ("names: [cat", "data.yaml:"),
}


@pytest.mark.parametrize(("text", "message"), CONFIGS.values(), ids=CONFIGS)
def test_malformed_yaml(source, text, message):
    two_images(source).write("data.yaml", text)
    assert source.refusal("yolo").startswith(message)


def test_other_refusals(source):
    two_images(source)
    assert "--images" in source.refusal("yolo", images=source.folder / "images")
    (source.folder / "images/train/a.png").write_bytes(b"no image")
    assert source.refusal("yolo").startswith("images/train/a.png: damaged or not an image")
    (source.folder / "data.yaml").unlink()
    assert "has neither data.yaml nor classes.txt" in source.refusal("yolo")
    source.write("classes.txt", "cat\ncat\n")
    assert source.refusal("yolo") == "classes.txt:2: the class 'cat' is repeated"


def test_no_text_file_at_all(source):
    source.draw("images/a.png", 4, 4)
    source.write("classes.txt", "cat\n")
    assert "no image has a text file in labels/ or beside it" in source.refusal("yolo")


POSES = {2: "0 0.5 0.5 0.2 0.4 0.45 0.4 0.55 0.6 0.5 0.5\n", 3: "0 0.5 0.5 0.2 0.4 0.45 0.4 2 0.55 0.6 1 0 0 0\n"}


@pytest.mark.parametrize("values", POSES)
def test_the_box_of_a_pose_is_its_first_four_numbers(source, boxes_of, values):
    """Two keypoints of x, y or of x, y, visibility follow the box, as kpt_shape says."""
    source.draw("images/train/a.png", 40, 60)
    source.write("labels/train/a.txt", POSES[values] + "0 0.25 0.5 0.5 1\n")
    source.write("data.yaml", f"train: images/train\nnames: [cat]\nkpt_shape: [3, {values}]\n")
    (content,) = source.bring_in("yolo").values()
    np.testing.assert_allclose([row[2] for row in boxes_of(content)], [[24, 12, 12, 16], [0, 0, 30, 40]], atol=1e-9)


def test_poses_that_do_not_fit(source):
    source.draw("images/train/a.png", 40, 60)
    source.write("labels/train/a.txt", POSES[3])
    source.write("data.yaml", "train: images/train\nnames: [cat]\nkpt_shape: [17, 3]\n")
    assert source.refusal("yolo") == (
        "labels/train/a.txt:1: 13 numbers after the class, expected 55: x y w h and 17 keypoints of 3 (kpt_shape)"
    )
    source.write("data.yaml", "train: images/train\nnames: [cat]\nkpt_shape: 17\n")
    assert source.refusal("yolo") == "data.yaml:3: kpt_shape is not [number of keypoints, 2 or 3]: 17"


def test_polygons_that_may_be_poses_are_reported(source, caplog):
    """Without kpt_shape, all lines have the same count, and all points are in the box of the first four numbers."""
    source.draw("images/a.png", 40, 60)
    source.write("classes.txt", "cat\n")
    source.write("labels/a.txt", POSES[2] * 2)
    source.bring_in("yolo")
    assert (
        "all 2 polygons have 10 numbers: if they are x y w h and keypoints, add kpt_shape to data.yaml" in caplog.text
    )
    caplog.clear()
    shutil.rmtree(source.output)
    source.write("labels/a.txt", "0 0.1 0.1 0.2 0.1 0.9 0.2 0.9 0.9 0.1 0.2\n" + POSES[2])
    source.bring_in("yolo")
    assert "kpt_shape" not in caplog.text


def test_polygons_a_little_beyond_the_border_are_clipped_and_counted(source, boxes_of, caplog):
    caplog.set_level(logging.INFO)
    source.draw("images/a.png", 40, 60)
    source.write("classes.txt", "cat\n")
    lines = ["0 -0.02 0.5 0.5 1.05 0.5 0.5", "0 0.5 0.5 1 0.5 1 1", "0 1.01 0.5 0.1 0.2"]
    source.write("labels/a.txt", "\n".join(lines))
    (content,) = source.bring_in("yolo").values()
    boxes = [[0, 20, 30, 20], [30, 20, 30, 20], [57.6, 16, 6, 8]]  # a box stays as it is, as in any other format
    np.testing.assert_allclose([row[2] for row in boxes_of(content)], boxes, atol=1e-9)
    assert "polygons and other outlines that reach beyond the image: 1 of 2; clipped" in caplog.text
    assert "1 of 3 boxes reaches beyond the image: clipped" in caplog.text


def test_train_and_val_that_name_one_folder(source, caplog):
    """As coco128.yaml does. --split divides them; an image that one split lists twice is imported once."""
    two_images(source).write("data.yaml", YAML.replace("images/val", "images/train"))
    assert source.refusal("yolo", "data.yaml") == (
        "data.yaml: train and val share 2 images, such as images/train/a.png; "
        "give each split its own, or divide them, as by --split 0.8/0.2"
    )
    splits = source.bring_in("yolo", fractions=[0.5, 0.5])
    assert {name: len(content["images"]) for name, content in splits.items()} == {"train": 1, "val": 1}
    shutil.rmtree(source.output)
    source.write("data.yaml", YAML.replace("train: images/train", "train: [images/train, images/../images/train/deep]"))
    splits = source.bring_in("yolo")
    assert {name: len(content["images"]) for name, content in splits.items()} == {"train": 2, "val": 1}
    assert "images that are listed again: 1; imported once" in caplog.text


def test_comments_in_lists(source):
    """A comment in a list of images is skipped; in a list of classes it may be a class, which shifts the others."""
    two_images(source)
    source.write("val.txt", "# the validation images\nimages/val/c.png\n")
    source.write("data.yaml", YAML.replace("images/val", "val.txt"))
    assert len(source.bring_in("yolo")["val"]["images"]) == 1
    shutil.rmtree(source.output)
    (source.folder / "data.yaml").unlink()
    source.write("classes.txt", "# animals\ncat\n")
    assert source.refusal("yolo") == "classes.txt:1: # animals is a comment or a class; remove it, or use a data.yaml"
