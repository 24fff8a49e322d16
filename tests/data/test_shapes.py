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


def test_deformed_shapes_are_thin_or_bent():
    rng, filled, bent = np.random.default_rng(0), [], 0
    for _ in range(100):
        (contour,) = (part.astype(np.float32) for part in painting.silhouette(rng, "rectangle", 60, deformed=True))
        assert np.ptp(contour, axis=0).max() == pytest.approx(60, abs=1e-3)
        (_, extent, _), area = cv2.minAreaRect(contour), cv2.contourArea(contour)
        filled.append(min(extent) / max(extent))
        bent += area < 0.8 * cv2.contourArea(cv2.convexHull(contour))
    assert min(filled) < 0.25 and max(filled) > 0.6 and bent > 10


def test_a_bent_line_keeps_its_length_and_bends_to_an_arc():
    line = np.array([[-1.0, 0], [1, 0], [1, 0.001], [-1, 0.001]])
    (contour,) = painting._bent([line], np.pi / 2)
    lower = contour[: len(contour) // 4]
    np.testing.assert_allclose(lower[0], [-2 / np.pi, 2 / np.pi], atol=1e-9)  # a quarter turn to each side
    np.testing.assert_allclose(np.hypot(lower[:, 0], lower[:, 1] - 2 / np.pi), 2 / np.pi, atol=1e-9)


def test_companions_stand_outside_the_boxes_and_agree_as_often_as_asked():
    agreed = []
    for seed in range(80):
        image, items = shapes.context_scene(np.random.default_rng(seed), 200, 0.95)
        other, same = shapes.context_scene(np.random.default_rng(seed), 200, 1 / 6)
        assert len(items) >= 1 and [item.category for item in items] == [item.category for item in same]
        inside = np.zeros(image.shape[:2], bool)
        for item in items:
            x, y, w, h = cv2.boundingRect(item.silhouette.astype(np.uint8))
            assert not inside[y : y + h, x : x + w].any()
            inside[y : y + h, x : x + w] = True
        if [item.companion for item in items] != [item.companion for item in same]:
            changed = np.abs(image.astype(int) - other).max(axis=2) > 40
            assert changed.any() and not (changed & inside).any()  # the surroundings alone
        agreed.append([[item.companion == item.category for item in part] for part in (items, same)])
    rates = [np.mean(np.concatenate([pair[k] for pair in agreed])) for k in range(2)]
    assert 0.9 < rates[0] < 1 and 0.08 < rates[1] < 0.27


def test_the_variants_are_datasets_with_their_splits(tmp_path):
    for variant in ("deformed", "context"):
        assert generate(tmp_path / variant, train=3, val=2, size=160, variant=variant) is True
        assert generate(tmp_path / variant, train=3, val=2, size=160, variant=variant) is False
    assert sorted(path.name for path in (tmp_path / "context").iterdir() if path.is_dir()) == [
        *("annotations", "train", "val", "val_agreeing"),
    ]
    val, agreeing = (
        CocoDataset(str(tmp_path / f"context/{split}"), str(tmp_path / f"context/annotations/instances_{split}.json"))
        for split in ("val", "val_agreeing")
    )
    for index in range(2):
        assert (val.annotations(index).boxes == agreeing.annotations(index).boxes).all()
    assert generate(tmp_path / "context", train=3, val=2, size=160) is True  # replaced by the plain one
    assert not (tmp_path / "context/val_agreeing").exists()


def test_a_dataset_from_before_the_variants_is_kept(made, tmp_path):
    folder = tmp_path / "shapes"
    generate(folder, train=2, val=1)
    spec = json.loads((folder / "shapes.json").read_text())
    assert spec.pop("variant") == "plain"
    (folder / "shapes.json").write_text(json.dumps(spec))
    assert generate(folder, train=2, val=1) is False


def test_the_tool(tmp_path):
    command = [sys.executable, str(TOOL), "--output", str(tmp_path / "s"), "--train", "2", "--val", "1"]
    for said in ("2 + 1 images written", "already exists"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and said in done.stdout
    done = subprocess.run([*command, "--size", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: shapes:") and "Traceback" not in done.stderr
