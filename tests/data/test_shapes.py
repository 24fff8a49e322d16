"""The synthetic dataset: reproducible, valid, and never overwriting the files of others."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.synthetic import painting, shapes
from ppdet_lite.data.synthetic.shapes import CATEGORIES, generate, scene

TOOL = Path(__file__).parents[2] / "tools" / "make_shapes.py"


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "shapes"
    assert generate(folder, train=40, val=10) is True
    return folder


def test_the_same_arguments_write_the_same_files(made, tmp_path):
    generate(tmp_path / "again", train=40, val=10)
    assert digests(tmp_path / "again") == digests(made)
    generate(tmp_path / "other", train=2, val=2, seed=1)
    assert digests(tmp_path / "other")["train/000001.jpg"] != digests(made)["train/000001.jpg"]


def test_images_do_not_depend_on_how_many_there_are(made, tmp_path):
    generate(tmp_path / "few", train=3, val=1)
    few, many = digests(tmp_path / "few"), digests(made)
    assert few["train/000003.jpg"] == many["train/000003.jpg"] and few["val/000001.jpg"] == many["val/000001.jpg"]


def test_an_existing_dataset_is_kept(tmp_path):
    folder = tmp_path / "shapes"
    folder.mkdir()  # an empty folder may be filled
    assert generate(folder, train=2, val=1) is True
    before = (folder / "train" / "000001.jpg").stat().st_mtime_ns
    assert generate(folder, train=2, val=1) is False
    assert (folder / "train" / "000001.jpg").stat().st_mtime_ns == before
    assert generate(folder, train=3, val=1) is True
    assert len(list((folder / "train").iterdir())) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["shapes"]  # no partial folder is left


@pytest.mark.parametrize("name", ["notes.txt", "shapes.json"])
def test_a_folder_of_somebody_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="is not a generated dataset"):
        generate(tmp_path, train=2, val=1)
    assert (tmp_path / name).read_text() == "{}"


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "_write_split", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"cannot write .*shapes: No space left"):
        generate(tmp_path / "shapes")
    assert not list(tmp_path.iterdir())


def test_invalid_arguments_are_refused(tmp_path):
    for wrong in ({"train": 0}, {"val": -1}, {"seed": -1}, {"size": 10}):
        with pytest.raises(UserError, match="train and val must be at least 1"):
            generate(tmp_path / "shapes", **wrong)


def test_the_files_are_valid_coco(made):
    for split, count in (("train", 40), ("val", 10)):
        dataset = CocoDataset(str(made / split), str(made / "annotations" / f"instances_{split}.json"))
        assert len(dataset) == count and dataset.category_ids.tolist() == sorted(CATEGORIES)
        assert dataset.class_names == list(CATEGORIES.values())
        assert all("no objects" in note for note in dataset.problem_messages)  # nothing to repair
        for index in range(count):
            height, width = dataset.load(index).shape[:2]
            assert 192 <= min(height, width) <= 256 <= max(height, width) <= 320
            boxes, _, is_crowd = dataset.annotations(index)
            assert (boxes[:, 2:] - boxes[:, :2])[~is_crowd].min(initial=16) >= 16
    ids = [a["id"] for a in json.loads((made / "annotations" / "instances_train.json").read_text())["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_scenes_have_every_class_empty_images_and_crowds():
    scenes = [scene(np.random.default_rng(seed), 160)[1] for seed in range(150)]
    counts = [sum(item.category == category for items in scenes for item in items) for category in CATEGORIES]
    assert min(counts) > 40
    assert 1 <= sum(not items for items in scenes) <= 20
    assert not any(item.is_crowd for items in scenes for item in items)
    crowded = [scene(np.random.default_rng(seed), 160, with_crowd=True)[1] for seed in range(10)]
    assert all([item.is_crowd for item in items] == [True] + [False] * (len(items) - 1) for items in crowded if items)
    assert sum(bool(items) for items in crowded) > 5


def test_no_object_is_mostly_hidden():
    for seed in range(60):
        _, items = scene(np.random.default_rng(seed), 200)
        for number, item in enumerate(items):
            above = np.any(
                [other.silhouette for other in items[number + 1 :]] or [np.zeros_like(item.silhouette)], axis=0
            )
            np.testing.assert_array_equal(item.visible, item.silhouette & ~above)
            assert item.visible.sum() >= 0.6 * item.silhouette.sum()


def test_silhouettes_have_the_requested_size_and_position():
    rng = np.random.default_rng(0)
    for name in CATEGORIES.values():
        for side in (40.0, 75.5):
            contours = painting.silhouette(rng, name, side)
            extent = np.ptp(contours[0], axis=0)
            assert extent.max() == pytest.approx(side)
            mask = painting.draw_mask(contours, np.array([60.0, 50.0]), (100, 120))
            x, y, w, h = cv2.boundingRect((mask > 127).astype(np.uint8))
            np.testing.assert_allclose([x + w / 2, y + h / 2], [60, 50], atol=1.6)
            np.testing.assert_allclose([w, h], extent, atol=3.5)  # pointed ends are thinner than a pixel
            outer, *hole = (cv2.contourArea(contour.astype(np.float32)) for contour in contours)
            outline = sum(cv2.arcLength(contour.astype(np.float32), True) for contour in contours)
            # OpenCV's smooth edge reaches half a pixel and a bit beyond the outline.
            assert mask.sum() / 255 == pytest.approx(outer - sum(hole) + 0.6 * outline, rel=0.05)


def test_only_the_ring_has_a_hole():
    for name in CATEGORIES.values():
        mask = painting.draw_mask(
            painting.silhouette(np.random.default_rng(1), name, 60), np.array([50, 50]), (100, 100)
        )
        assert (mask[50, 50] == 0) == (name == "ring")


def test_the_tool(tmp_path):
    command = [sys.executable, str(TOOL), "--output", str(tmp_path / "s"), "--train", "2", "--val", "1"]
    for said in ("2 + 1 images written", "already exists"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and said in done.stdout
    done = subprocess.run([*command, "--size", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: shapes:") and "Traceback" not in done.stderr
