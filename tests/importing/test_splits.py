"""How images are divided: fractions, lists, folders."""

from pathlib import Path

import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import ImportedData, ImportedImage
from ppdet_lite.data.importing.splits import parse_fractions, split


def found(*names, **more):
    return ImportedData([ImportedImage(Path(name), name, [], name, **more) for name in names])


def names_of(splits):
    return {name: [picture.name for picture in pictures] for name, pictures in splits.items()}


TEN = [f"{k}.jpg" for k in range(10)]


@pytest.mark.parametrize(("fractions", "counts"), [([0.8, 0.2], [8, 2]), ([0.5, 0.25, 0.25], [5, 3, 2])])
def test_fractions(fractions, counts):
    """0.25 of ten: the ends are at 5, 7.5 and 10, and 7.5 is rounded to the even 8."""
    splits = names_of(split(found(*reversed(TEN)), fractions, (), 0, BadItems())[0])
    assert list(splits) == ["train", "val", "test"][: len(fractions)]
    assert [len(names) for names in splits.values()] == counts
    assert sorted(name for names in splits.values() for name in names) == TEN
    assert all(names == sorted(names) for names in splits.values())


def test_fractions_depend_only_on_the_seed():
    first, again, other = (names_of(split(found(*TEN), [0.5, 0.5], (), seed, BadItems())[0]) for seed in (3, 3, 4))
    assert first == again != other
    assert names_of(split(found(*reversed(TEN)), [0.5, 0.5], (), 3, BadItems())[0]) == first


@pytest.mark.parametrize("text", ["0.8", "0.8/0.3", "1/0", "-0.2/1.2", "a/b", "0.2/0.2/0.2/0.4", "nan/1", ""])
def test_invalid_fractions(text):
    with pytest.raises(UserError, match="expected two or three fractions with sum 1"):
        parse_fractions(text)
    assert parse_fractions("0.7/0.2/0.1") == [0.7, 0.2, 0.1]


def test_a_fraction_without_images():
    with pytest.raises(UserError, match="no image of 2 is left for val"):
        split(found("a.jpg", "b.jpg"), [0.9, 0.1], (), 0, BadItems())


def test_lists_call_images_by_path_or_name_with_or_without_suffix(tmp_path):
    images = found("x/a.jpg", "x/b.jpg", "y/b.jpg", "c.jpg", "d.jpg")
    first, second = tmp_path / "one.txt", tmp_path / "two.txt"
    first.write_text("./images/x/a.jpg\nc\n")
    second.write_text("y/b\nx\\b.jpg\n")
    splits, notes = split(images, None, [first, second], 0, BadItems())
    assert names_of(splits) == {"one": ["c.jpg", "x/a.jpg"], "two": ["x/b.jpg", "y/b.jpg"]}
    assert notes == ["annotated images in no list: 1 of 5; left out"]
    second.write_text("b.jpg\n")
    with pytest.raises(UserError, match=r"two.txt:1: b.jpg matches 2 images; add the folder"):
        split(images, None, [first, second], 0, BadItems())
    with pytest.raises(UserError, match="two lists are named one"):
        split(images, None, [first, first], 0, BadItems())


def test_folders_and_none():
    assert names_of(split(found("valid/a.jpg", "train/b.jpg", "train/c/d.jpg"), None, (), 0, BadItems())[0]) == {
        "train": ["train/b.jpg", "train/c/d.jpg"],
        "val": ["valid/a.jpg"],
    }
    assert names_of(split(found("valid/a.jpg", "more/b.jpg"), None, (), 0, BadItems())[0]) == {
        "all": ["more/b.jpg", "valid/a.jpg"]
    }


def test_comments_in_lists(tmp_path):
    """A line that begins with # is a comment, unless an image has that name."""
    path = tmp_path / "train.txt"
    path.write_text("# the first images\na.jpg\n#b.jpg\n")
    assert names_of(split(found("a.jpg", "b.jpg"), None, [path], 0, BadItems())[0]) == {"train": ["a.jpg"]}
    assert names_of(split(found("a.jpg", "#b.jpg"), None, [path], 0, BadItems())[0]) == {"train": ["#b.jpg", "a.jpg"]}
