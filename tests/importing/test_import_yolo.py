"""YOLO folders become COCO files; what is malformed is told with its line."""

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
