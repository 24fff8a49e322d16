"""How images are divided: fractions, lists, folders."""

from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.importing.bad_items import BadItems
from ppdet_lite.data.importing.records import ImportedData, ImportedImage
from ppdet_lite.data.importing.splits import parse_fractions, split


@pytest.fixture
def ten(tmp_path):
    """Ten images whose files differ."""
    for name in TEN:
        (tmp_path / name).write_text(name)
    return ImportedData([ImportedImage(tmp_path / name, name, [], name) for name in reversed(TEN)])


def found(*names, **more):
    return ImportedData([ImportedImage(Path(name), name, [], name, **more) for name in names])


def names_of(splits):
    return {name: [picture.name for picture in pictures] for name, pictures in splits.items()}


TEN = [f"{k}.jpg" for k in range(10)]


@pytest.mark.parametrize(("fractions", "counts"), [([0.8, 0.2], [8, 2]), ([0.5, 0.25, 0.25], [5, 3, 2])])
def test_fractions(ten, fractions, counts):
    """0.25 of ten: the ends are at 5, 7.5 and 10, and 7.5 is rounded to the even 8."""
    splits = names_of(split(ten, fractions, (), 0, BadItems())[0])
    assert list(splits) == ["train", "val", "test"][: len(fractions)]
    assert [len(names) for names in splits.values()] == counts
    assert sorted(name for names in splits.values() for name in names) == TEN
    assert all(names == sorted(names) for names in splits.values())


def test_fractions_depend_only_on_the_seed(ten):
    first, again, other = (names_of(split(ten, [0.5, 0.5], (), seed, BadItems())[0]) for seed in (3, 3, 4))
    assert first == again != other
    assert names_of(split(ten._replace(images=ten.images[::-1]), [0.5, 0.5], (), 3, BadItems())[0]) == first
    order = np.random.default_rng(3).permutation(10)[:5].tolist()
    assert first["train"] == [TEN[k] for k in sorted(order)]  # files that differ: a random half of the images


def test_identical_files_stay_together(ten, tmp_path):
    """Three pairs of the same content; one more file has only the same size."""
    for k in (1, 3, 5):
        (tmp_path / f"{k}.jpg").write_text(f"same {k}")
        (tmp_path / f"{k + 1}.jpg").write_text(f"same {k}")
    (tmp_path / "7.jpg").write_text("same X")
    seen = set()
    for seed in range(20):
        splits, notes = split(ten, [0.6, 0.4], (), seed, BadItems())
        split_of = {name: part for part, names in names_of(splits).items() for name in names}
        assert len(split_of) == 10 and all(split_of[f"{k}.jpg"] == split_of[f"{k + 1}.jpg"] for k in (1, 3, 5))
        assert len(splits["train"]) in (6, 7)
        seen |= {split_of["1.jpg"] == split_of["3.jpg"], split_of["7.jpg"] == split_of["1.jpg"]}
    assert seen == {True, False}
    assert notes == [
        "images whose file is identical to another's: 6 of 10; those with the same content are in one split"
    ]


def test_identical_files_that_leave_nothing_for_a_split(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("same")
    images = ImportedData([ImportedImage(tmp_path / name, name, [], name) for name in "ab"])
    with pytest.raises(UserError, match=r"no image of 2 is left for val; .*: 2 of 2, which stay in one split"):
        split(images, [0.5, 0.5], (), 0, BadItems())


@pytest.mark.parametrize("text", ["0.8", "0.8/0.3", "1/0", "-0.2/1.2", "a/b", "0.2/0.2/0.2/0.4", "nan/1", ""])
def test_invalid_fractions(text):
    with pytest.raises(UserError, match="expected two or three fractions with sum 1"):
        parse_fractions(text)
    assert parse_fractions("0.7/0.2/0.1") == [0.7, 0.2, 0.1]


def test_a_fraction_without_images(ten):
    with pytest.raises(UserError, match=r"no image of 2 is left for val; choose other fractions$"):
        split(ten._replace(images=ten.images[:2]), [0.9, 0.1], (), 0, BadItems())


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
