"""Inference on image files: results, files written, and errors."""

import json
import logging

import cv2
import numpy as np
import pytest

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.data.annotations.dataset import Objects
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.drawing import draw_detections
from ppdet_lite.data.loading.loader import Loader
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.infer import draw_comparison, infer
from ppdet_lite.storage import files as storage
from tests.tiny_run import Oracle

NAMES, IDS = ["猫", "dog"], [40, 7]
CAT = ([[10, 20, 30.5, 40]], [0.75], [0])
NOTHING = ([], [], [])


def write_image(path, height=48, width=64, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def oracle(answers):
    model = Oracle(answers)
    model.eval()
    return Detector.from_trained(TrainedModel(model, NAMES, IDS, Preprocess(short_side=32, long_side=64), "a test"))


def run(answers, source, output, score=0.5, threads=1):
    infer(oracle(answers), source, output, Loader(batch_size=2, threads=threads), score)
    return json.loads((output / "detections.json").read_text(encoding="utf-8"))


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_one_file(tmp_path):
    write_image(tmp_path / "a.png")
    found = run([([[10, 20, 30.5, 40], [1, 2, 3, 4]], [0.75, 0.25], [0, 1])], tmp_path / "a.png", tmp_path / "out")
    cat = {"class": "猫", "category_id": 40, "score": 0.75, "bbox": [10, 20, 30.5, 40]}
    assert found == [{"file": "a.png", "width": 64, "height": 48, "detections": [cat]}]
    assert files(tmp_path / "out") == ["a.png", "detections.json"]
    drawn = draw_detections(
        load_image(str(tmp_path / "a.png")), np.float32(CAT[0]), np.array([0]), np.float32([0.75]), NAMES
    )
    np.testing.assert_array_equal(load_image(str(tmp_path / "out" / "a.png")), drawn)


def test_a_folder_is_searched_in_order_and_its_sub_folders_are_kept(tmp_path):
    source = tmp_path / "in"
    names = ["a.png", "sub/a.png", "sub/deeper/b.JPG", "z.bmp", "z.webp"]
    for seed, name in enumerate(reversed(names)):
        write_image(source / name, seed=seed)
    for name in (".hidden.png", ".git/c.png", "notes.txt", "folder.png/d.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("not an image")
    found = run([CAT, NOTHING, CAT, NOTHING, CAT], source, tmp_path / "out")
    assert [image["file"] for image in found] == names
    assert [len(image["detections"]) for image in found] == [1, 0, 1, 0, 1]
    assert files(tmp_path / "out") == sorted([*names, "detections.json"])
    for name in names[1::2]:  # nothing found, nothing drawn; jpg would not be lossless
        np.testing.assert_array_equal(load_image(str(source / name)), load_image(str(tmp_path / "out" / name)))


def test_size_is_that_of_the_image_as_exif_turns_it(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.jpg", exif=exif)
    (found,) = run([NOTHING], tmp_path / "a.jpg", tmp_path / "out")
    assert (found["width"], found["height"]) == (48, 64)
    assert load_image(str(tmp_path / "out" / "a.jpg")).shape == (64, 48, 3)


def test_other_files_of_a_folder_are_reported_in_one_line(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    for name in ("a.png", "sub/b.png"):
        write_image(tmp_path / "in" / name)
    others = ["c.heic", "sub/d.HEIC", "e.gif", "f.mp4", "raw"]
    for name in (*others, "a.json", "a.xml", "sub/b.txt", ".hidden.heic", ".git/g.mp4"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    assert len(run([NOTHING] * 2, tmp_path / "in", tmp_path / "out")) == 2
    (line,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    skipped = "skipped files: 1 without suffix, 1 .gif, 2 .heic, 1 .mp4; supported are .jpg, .jpeg, .png"
    assert line.startswith(f"{tmp_path}/in: {skipped}")


def write_truth(folder, image_names, size=(48, 64)):
    """Annotations of images of one size; the first image contains a dog."""
    height, width = size
    content = {
        "images": [{"id": n, "file_name": x, "height": height, "width": width} for n, x in enumerate(image_names)],
        "categories": [{"id": 40, "name": "dog"}, {"id": 7, "name": "猫"}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 40, "bbox": [5, 6, 20, 30], "area": 600, "iscrowd": 0}],
    }
    (folder / "truth.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "truth.json"


def test_truth_side_by_side(tmp_path):
    """Images and classes are matched by name, in any order."""
    source = tmp_path / "in"
    for name in ("a.png", "sub/b.png"):
        write_image(source / name)
    truth = write_truth(tmp_path, ["sub/b.png", "not/there.png", "a.png"])
    infer(oracle([NOTHING, CAT]), source, tmp_path / "out", Loader(batch_size=2, threads=1), 0.5, truth)
    dog = Objects(np.float32([[5, 6, 25, 36]]), np.array([1]), np.array([False]))
    none = Objects(np.empty((0, 4), np.float32), np.empty(0, np.int64), np.empty(0, bool))
    for name, objects, (boxes, scores, classes) in (("a.png", none, NOTHING), ("sub/b.png", dog, CAT)):
        found = ImageDetections(0, np.float32(boxes).reshape(-1, 4), np.float32(scores), np.int64(classes))
        expected = draw_comparison(load_image(str(source / name)), objects, found, NAMES, 0.5)
        np.testing.assert_array_equal(load_image(str(tmp_path / "out" / name)), expected)


def test_truth_of_other_images_is_refused(tmp_path):
    source = tmp_path / "in"
    for name in ("a.png", "b.png"):
        write_image(source / name)
    for names, size, message in (
        (["b.png"], (48, 64), r"truth\.json: has no image a\.png \(missing images: 1 of 2\); --side-by-side requires"),
        (["a.png", "b.png"], (64, 48), r"a\.png is 64x48, but 48x64 in .*truth\.json"),
    ):
        truth = write_truth(tmp_path, names, size)
        with pytest.raises(UserError, match=message):
            infer(oracle([NOTHING] * 2), source, tmp_path / "out", Loader(batch_size=2, threads=1), 0.5, truth)
        assert not (tmp_path / "out" / "detections.json").exists()


def test_the_score_applies_to_visualization_and_json(tmp_path):
    write_image(tmp_path / "a.png")
    (high,) = run([CAT], tmp_path / "a.png", tmp_path / "high", score=0.76)
    assert high["detections"] == []
    np.testing.assert_array_equal(load_image(str(tmp_path / "high" / "a.png")), load_image(str(tmp_path / "a.png")))
    (equal,) = run([CAT], tmp_path / "a.png", tmp_path / "equal", score=0.75)
    assert len(equal["detections"]) == 1


@pytest.mark.parametrize("score", [0.04, 1.5, float("nan")])
def test_a_score_below_the_models_threshold_is_refused(tmp_path, score):
    write_image(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"score .* is not between model\.postprocess\.score_threshold, 0\.05, and 1"):
        run([CAT], tmp_path / "a.png", tmp_path / "out", score)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("threads", [0, 2])
def test_damaged_images_are_skipped_and_logged(tmp_path, threads, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ppdet_lite"), "propagate", True)
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.png", "c.png", "e.png"):
        write_image(source / name)
    (source / "d.png").write_bytes((source / "a.png").read_bytes()[:200])
    (source / "f.tiff").write_bytes(b"II*\0")
    with pytest.raises(RunFailed, match=r"^skipped 2 of 6 images; the first: .*d\.png cannot be decoded"):
        run([CAT] * 6, source, output, threads=threads)
    assert [line for line in caplog.messages if "f.tiff cannot be decoded" in line and line.startswith("skipped: ")]
    found = json.loads((output / "detections.json").read_text())
    assert [(image["file"], len(image["detections"])) for image in found] == [
        (name, 1) for name in ("a.png", "b.png", "c.png", "e.png")
    ]
    assert files(output) == ["a.png", "b.png", "c.png", "detections.json", "e.png"]


def test_tiff(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    for name, depth in (("a.tif", 8), ("b.TIFF", 16)):
        deep = pixels if depth == 8 else pixels.astype(np.uint16) * 257
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(cv2.imencode(".tiff", deep[..., ::-1])[1].tobytes())
        np.testing.assert_array_equal(load_image(str(tmp_path / "in" / name)), pixels)
    assert len(run([NOTHING] * 2, tmp_path / "in", tmp_path / "out")) == 2
    np.testing.assert_array_equal(load_image(str(tmp_path / "out" / "a.tif")), pixels)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no.png", r"no\.png: no such image or folder; correct the path"),
        ("notes.txt", r"notes\.txt: not an image file; supported are \.jpg"),
        ("empty", r"empty: contains no image; supported are \.jpg.*; correct the path"),
        ("other", r"other: contains no image; skipped files: 1 \.gif, 2 \.heic; supported are \.jpg"),
        ("other/a.HEIC", r"a\.HEIC: not an image file; supported are \.jpg"),
    ],
)
def test_a_source_without_images_is_refused(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("a.HEIC", "b.heic", "c.gif"):
        (tmp_path / "other" / name).touch()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=message):
        run([], tmp_path / source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("source", "output"), [("in", "in"), ("in", "in/out"), ("in/a.png", "in"), ("in", "in/../in/x"), ("link", "in")]
)
def test_originals_are_never_overwritten(tmp_path, source, output):
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "in")
    before = (tmp_path / "in" / "a.png").read_bytes()
    with pytest.raises(UserError, match=r"lies within .* where the images are; choose another folder"):
        run([CAT], tmp_path / source, tmp_path / output)
    assert files(tmp_path / "in") == ["a.png"]
    assert (tmp_path / "in" / "a.png").read_bytes() == before


def test_one_files_output_may_be_beside_it(tmp_path):
    write_image(tmp_path / "a.png")
    assert len(run([CAT], tmp_path / "a.png", tmp_path / "drawn")) == 1


def test_an_output_that_is_a_file_is_reported_before_detecting(tmp_path):
    write_image(tmp_path / "in" / "a.png")
    (tmp_path / "out").write_text("mine")
    detector = oracle([CAT])
    with pytest.raises(UserError, match=r"out/detections\.json: cannot be written: File exists"):
        infer(detector, tmp_path / "in", tmp_path / "out", Loader(threads=0))
    assert detector.network.model.calls == [] and (tmp_path / "out").read_text() == "mine"


def test_a_full_disk_leaves_no_partial_image(tmp_path, monkeypatch):
    write_image(tmp_path / "in" / "a.png")

    writer = storage.atomic_writer

    def full(path):
        if path.suffix == ".png":
            raise OSError(28, "No space left on device")
        return writer(path)

    monkeypatch.setattr(storage, "atomic_writer", full)
    with pytest.raises(UserError, match=r"out/a\.png: cannot be written: No space left on device; free space"):
        run([CAT], tmp_path / "in", tmp_path / "out")
    assert files(tmp_path / "out") == []
