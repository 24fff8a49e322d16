"""Evaluation: from detections to bbox.json and metrics.json, and the metrics.

The oracles are cases whose AP is known by hand, and pycocotools used plainly on the written file.
"""

import contextlib
import io
import json

import numpy as np
import paddle
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.deployment.detect import ImageDetections, TrainedNetwork, detect
from ppdet_lite.evaluation import evaluate as module
from ppdet_lite.evaluation import progress
from ppdet_lite.evaluation.coco_metric import SUMMARY, format_metrics, score_file
from ppdet_lite.evaluation.evaluate import evaluate
from ppdet_lite.evaluation.progress import in_order
from tests.tiny_run import (
    SIZES,
    Oracle,
    as_detector,
    perfect_answers,
    tiny_config,
    tiny_dataset,
    write_images,
)

PREPROCESS = Preprocess(short_side=32, long_side=64)
LOADER = Loader(batch_size=2, threads=1)
NOTHING = ([], [], [])


def run(dataset, answers, folder):
    return evaluate(as_detector(Oracle(answers), dataset, PREPROCESS), dataset, LOADER, folder)


def pycocotools_says(annotations, results):
    """The 12 numbers and {category id: (AP, AP50)}, by pycocotools' own functions only; -1 as it is."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        scorer = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
        stats, per_class = list(scorer.stats), {}
        for category in truth.getCatIds():  # each class scored alone
            scorer.params.catIds = [category]
            scorer.evaluate()
            scorer.accumulate()
            scorer.summarize()
            per_class[category] = scorer.stats[:2].tolist()
    return stats, per_class


def test_detect_yields_per_image_and_restores_every_layers_mode(tmp_path):
    dataset = tiny_dataset(tmp_path)
    model = Oracle(perfect_answers(dataset))
    model.norm.eval()  # a layer that was not in training mode must not be after
    found = list(detect(TrainedNetwork(model), EvalBatches(dataset, PREPROCESS, LOADER).iterate()))
    assert (model.training, model.norm.training) == (True, False)
    assert model.calls == [([1, 3, 32, 64], False, False, False), ([2, 3, 64, 32], False, False, False)]
    assert paddle.is_grad_enabled()
    assert [image.image_id for image in found] == list(SIZES)
    assert [len(image.boxes) for image in found] == [2, 1, 0]
    np.testing.assert_array_equal(found[1].boxes, [[10, 20, 50, 70]])
    assert found[2].boxes.shape == (0, 4) and found[2].scores.shape == found[2].classes.shape == (0,)
    assert (found[0].boxes.dtype, found[0].scores.dtype, found[0].classes.dtype) == ("float32", "float32", "int64")


def test_detect_restores_the_mode_after_an_error(tmp_path):
    dataset = tiny_dataset(tmp_path)
    (tmp_path / "images" / "3.png").write_bytes(b"no image")
    model = Oracle(perfect_answers(dataset))
    with pytest.raises(UserError, match=r"3\.png cannot be decoded"):
        list(detect(TrainedNetwork(model), EvalBatches(dataset, PREPROCESS, LOADER).iterate()))
    assert model.training and model.norm.training


def test_a_real_model_detects_in_original_pixels(tmp_path):
    config = load_config(tiny_config(tmp_path))
    dataset = tiny_dataset(tmp_path)
    model = build_model(config, dataset.class_names)
    found = list(detect(TrainedNetwork(model), EvalBatches(dataset, PREPROCESS, LOADER).iterate()))
    assert model.training
    for image, (height, width) in zip(found, SIZES.values(), strict=True):
        assert len(image.boxes) > 0
        assert (image.boxes >= 0).all() and (image.boxes <= [width, height, width, height]).all()
        assert (np.diff(image.scores) <= 0).all()
        assert set(image.classes.tolist()) <= {0, 1}
    assert max(image.boxes.max() for image in found) > 64  # more than any side of the network's input


def test_perfect_detections_have_ap_1(tmp_path):
    dataset = tiny_dataset(tmp_path)
    metrics = run(dataset, perfect_answers(dataset), tmp_path)
    # areas 1200 (medium), 720 (small), 2000 (medium); none is large; at most 2 objects in an image, of 2 classes
    assert {name: metrics[name] for name in SUMMARY} == {
        name: -1.0 if name in ("APl", "ARl") else pytest.approx(1.0) for name in SUMMARY
    }
    assert metrics["per_class"] == pytest.approx({"cat": 1.0, "dog": 1.0})
    assert (metrics["images"], metrics["detections"]) == (3, 3)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_results_file_has_xywh_and_category_ids(tmp_path):
    dataset = tiny_dataset(tmp_path)
    run(dataset, [([[5.25, 10, 35, 50]], [0.75], [1]), NOTHING, ([[0, 0, 0.1, 0.3]], [0.5], [0])], tmp_path)
    tenth, three = float(np.float32(0.1)), float(np.float32(0.3))
    assert json.loads((tmp_path / "bbox.json").read_text()) == [
        {"image_id": 7, "category_id": 9, "bbox": [5.25, 10.0, 29.75, 40.0], "score": 0.75},
        {"image_id": 12, "category_id": 5, "bbox": [0.0, 0.0, tenth, three], "score": 0.5},
    ]


def test_a_missed_class_halves_ap(tmp_path):
    dataset = tiny_dataset(tmp_path)
    (boxes, scores, classes), *_ = perfect_answers(dataset)  # both a cat and a dog; the dog of image 3 is missed too
    metrics = run(dataset, [(boxes[:1], scores[:1], classes[:1]), NOTHING, NOTHING], tmp_path)
    assert [metrics[name] for name in ("AP", "AP50", "AR100")] == pytest.approx([0.5, 0.5, 0.5])
    assert metrics["per_class"] == pytest.approx({"cat": 1.0, "dog": 0.0})


def test_a_shifted_box_counts_up_to_its_overlap(tmp_path):
    """A box of 30 x 40 shifted by 6: IoU 24/36 = 0.667, a match at thresholds 0.5, 0.55, 0.6, 0.65 of the ten."""
    dataset = tiny_dataset(tmp_path, xywh={7: [(5, 10, 30, 40, 5)], 3: [], 12: []})
    metrics = run(dataset, [([[11, 10, 41, 50]], [0.9], [0]), NOTHING, NOTHING], tmp_path)
    assert [metrics[name] for name in ("AP", "AP50", "AP75")] == pytest.approx([0.4, 1.0, 0.0])
    assert metrics["per_class"] == pytest.approx({"cat": 0.4, "dog": -1})
    assert metrics["per_class_AP50"] == pytest.approx({"cat": 1.0, "dog": -1})


def test_no_detections_give_ap_0_and_a_valid_file(tmp_path):
    dataset = tiny_dataset(tmp_path)
    metrics = run(dataset, [NOTHING] * 3, tmp_path)
    assert json.loads((tmp_path / "bbox.json").read_text()) == []
    assert {name: metrics[name] for name in SUMMARY} == dict.fromkeys(SUMMARY, 0.0) | {"APl": -1.0, "ARl": -1.0}
    assert metrics["per_class"] == {"cat": 0.0, "dog": 0.0} and metrics["detections"] == 0
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_without_any_object_there_is_nothing_to_measure(tmp_path):
    dataset = tiny_dataset(tmp_path, xywh={7: [], 3: [], 12: []})
    metrics = run(dataset, [([[1, 1, 9, 9]], [0.9], [0]), NOTHING, NOTHING], tmp_path)
    assert {metrics[name] for name in SUMMARY} == {-1.0}
    assert "AP    --" in format_metrics(metrics)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_pycocotools_to_the_last_digit(tmp_path, seed):
    rng = np.random.default_rng(seed)
    dogs = {i: [(*rng.uniform(0, 40, 2).round(2), *rng.uniform(5, 55, 2).round(2), 9) for _ in range(4)] for i in SIZES}
    xywh = {image_id: [*items, (1, 1, 9, 9, 5)] for image_id, items in dogs.items()}
    dataset = tiny_dataset(tmp_path, categories={9: "dog", 5: "cat", 2: "eel"}, xywh=xywh)
    assert dataset.class_names == ["eel", "cat", "dog"]
    answers = []
    for index in range(len(dataset)):
        objects = dataset.annotations(index)
        near, far = objects.boxes + rng.normal(0, 2, (5, 4)), rng.uniform(0, 30, (15, 4))
        far[:, 2:] += 30
        boxes = np.concatenate([near, far])
        classes = np.concatenate([objects.classes, rng.integers(0, 3, 15)])
        answers.append((boxes, rng.uniform(size=20), classes))
    metrics = run(dataset, answers, tmp_path)
    stats, per_class = pycocotools_says(tmp_path / "val.json", tmp_path / "bbox.json")
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 < written["AP"] < written["AP50"] < 1
    assert [written[name] for name in SUMMARY] == stats
    for place, key in enumerate(("per_class", "per_class_AP50")):
        expected = {name: per_class[category][place] for category, name in {9: "dog", 5: "cat"}.items()}
        assert written[key] == expected | {"eel": -1.0}
    assert written == metrics == score_file(dataset, tmp_path / "bbox.json")


def test_classes_are_matched_by_name_whatever_their_ids(tmp_path):
    """The model's classes are (dog, cat); the file has cat under the higher id, and another order of the records."""
    xywh = {7: [(5, 10, 30, 40, 77), (50, 8, 20, 36, 4)], 3: [(10, 20, 40, 50, 4)], 12: []}
    write_images(tmp_path / "images")
    dataset = tiny_dataset(tmp_path, ["cat", "dog"], categories={77: "cat", 4: "dog"}, xywh=xywh)
    assert [dataset.annotations(0).classes.tolist(), dataset.category_ids.tolist()] == [[0, 1], [77, 4]]
    metrics = run(dataset, perfect_answers(dataset), tmp_path)
    assert metrics["AP"] == pytest.approx(1.0) and list(metrics["per_class"]) == ["cat", "dog"]
    ids = [record["category_id"] for record in json.loads((tmp_path / "bbox.json").read_text())]
    assert ids == [77, 4, 4]


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    dataset = tiny_dataset(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert run(dataset, perfect_answers(dataset), None)["AP"] == pytest.approx(1.0)
    assert sorted(tmp_path.rglob("*")) == before


def test_pycocotools_is_silent_and_the_table_is_logged(tmp_path, capsys, caplog):
    dataset = tiny_dataset(tmp_path, categories={5: "cat", 9: "100 %s dog"})
    caplog.set_level("INFO", "ppdet_lite")
    run(dataset, perfect_answers(dataset), tmp_path)
    assert capsys.readouterr().out == ""
    text = caplog.text
    assert "3 detections in 3 images" in text
    assert "AP    1.000  AP50  1.000  AP75  1.000  APs   1.000  APm   1.000  APl   --" in text
    assert "cat        1.000  100 %s dog 1.000" in text
    assert str(tmp_path / "bbox.json") in text


def test_a_damaged_image_leaves_the_earlier_results(tmp_path):
    dataset = tiny_dataset(tmp_path)
    run(dataset, perfect_answers(dataset), tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    (tmp_path / "images" / "12.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"12\.png cannot be decoded .*image id 12 in"):
        run(dataset, perfect_answers(dataset), tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    assert set(before) == {"bbox.json", "metrics.json"}


def test_an_unwritable_folder_is_reported_before_detecting(tmp_path):
    dataset = tiny_dataset(tmp_path)
    (tmp_path / "file").write_text("")
    model = Oracle(perfect_answers(dataset))
    with pytest.raises(UserError, match=r"file/run/bbox\.json: cannot be written: Not a directory"):
        evaluate(as_detector(model, dataset, PREPROCESS), dataset, LOADER, tmp_path / "file" / "run")
    assert model.calls == []


def test_paddles_own_oserror_is_not_taken_for_a_full_disk(tmp_path):
    dataset = tiny_dataset(tmp_path)

    class Broken(Oracle):
        def forward(self, *inputs, **sizes):
            raise OSError("(External) CUDA error(719)")

    with pytest.raises(OSError, match="CUDA error"):
        evaluate(as_detector(Broken([]), dataset, PREPROCESS), dataset, LOADER, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


GOOD = {"image_id": 7, "category_id": 5, "bbox": [1, 2, 3.5, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", r"results .*r\.json are not JSON"),
        ({"annotations": []}, "expected a list of detections, found dict"),
        ([GOOD, {**GOOD, "score": None}], "entry 2 is not \\{image_id, category_id, bbox"),
        ([{**GOOD, "bbox": [1, 2, 3]}], "entry 1 is not"),
        ([{**GOOD, "bbox": None}], "entry 1 is not"),
        ([{**GOOD, "score": float("nan")}], "entry 1 is not"),
        ([{**GOOD, "category_id": "5"}], "entry 1 is not"),
        ([7], "entry 1 is not"),
        ([GOOD, {**GOOD, "image_id": 8}], r"entry 2 has image_id 8, which is not in .*val\.json"),
        ([{**GOOD, "category_id": 1}], "entry 1 has category_id 1, which is not in .* results of another dataset"),
    ],
)
def test_invalid_results_are_refused(tmp_path, content, message):
    dataset = tiny_dataset(tmp_path)
    (tmp_path / "r.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        score_file(dataset, tmp_path / "r.json")


def test_missing_results_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read results .*no\.json: No such file"):
        score_file(tiny_dataset(tmp_path), tmp_path / "no.json")


def test_progress_is_logged_at_intervals(monkeypatch, caplog):
    caplog.set_level("INFO", "ppdet_lite")
    clock = iter([0.0, 4.0, 11.0, 15.0, 22.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    images = [ImageDetections(i, np.empty((0, 4)), np.empty(0), np.empty(0)) for i in range(4)]
    assert [image.image_id for image in progress.log_progress(iter(images), 6)] == [0, 1, 2, 3]
    assert caplog.messages == ["image 2/6  eta 0:00:22  0.18 images/s", "image 4/6  eta 0:00:11  0.18 images/s"]


def test_ranks_gather_every_image_once(tmp_path, monkeypatch):
    """Two ranks, one of them simulated. It returns its images and one of ours again, as some samplers do."""
    dataset = tiny_dataset(tmp_path)
    answers = dict(zip(SIZES, perfect_answers(dataset), strict=True))
    theirs = [
        ImageDetections(i, np.float32(boxes).reshape(-1, 4), np.float32(scores), np.int64(classes))
        for i, (boxes, scores, classes) in answers.items()
    ]
    monkeypatch.setattr(module.ranks, "world", lambda: 2)
    monkeypatch.setattr(module.ranks, "start", lambda: None)
    monkeypatch.setattr(module.ranks, "on_all_ranks", lambda work: [work(), theirs[:1] and [theirs.pop()]])
    monkeypatch.setattr(module.ranks, "on_rank0", lambda work: work())
    monkeypatch.setattr(module, "EXCHANGE_INTERVAL", 0.0)  # an image of each a time
    metrics = run(dataset, [answers[7]], tmp_path)
    assert (metrics["AP"], metrics["detections"]) == (pytest.approx(1.0), 3)
    assert [record["image_id"] for record in json.loads((tmp_path / "bbox.json").read_text())] == [7, 7, 3]


def test_detections_do_not_depend_on_the_batch_size(tmp_path):
    """Alone, or with images of other sizes: equal up to rounding, which depends on the order of sums in a kernel."""
    config = load_config(tiny_config(tmp_path))
    dataset = tiny_dataset(tmp_path)
    model = build_model(config, dataset.class_names)
    one, three = (
        list(detect(TrainedNetwork(model), EvalBatches(dataset, PREPROCESS, Loader(batch_size=size)).iterate()))
        for size in (1, 3)
    )
    for alone, beside in zip(one, three, strict=True):
        assert alone.image_id == beside.image_id and len(alone.boxes) > 0
        np.testing.assert_array_equal(alone.classes, beside.classes)
        np.testing.assert_allclose(alone.boxes, beside.boxes, atol=1e-4)
        np.testing.assert_allclose(alone.scores, beside.scores, atol=1e-6)


def test_detections_are_put_into_the_order_of_images():
    found = [ImageDetections(i, *(np.empty(0),) * 3) for i in (4, 2, 9, 7)]
    assert [image.image_id for image in in_order(iter(found), [2, 7, 4, 9])] == [2, 7, 4, 9]


def test_both_backends_have_the_same_numbers(tmp_path):
    """On random boxes near the ground truth, with crowds, several sizes and images without objects."""
    dataset = tiny_dataset(tmp_path)
    rng = np.random.default_rng(0)
    answers = []
    for boxes, _, classes in perfect_answers(dataset):
        boxes = np.concatenate([boxes] * 4) + rng.normal(0, 3, (4 * len(boxes), 4)).astype(np.float32)
        answers.append((boxes, rng.random(len(boxes)), np.concatenate([classes] * 4)))
    run(dataset, answers, tmp_path)
    ours, faster = (score_file(dataset, tmp_path / "bbox.json", backend) for backend in ("pycocotools", "faster"))
    assert 0 < ours["AP"] < 1
    assert faster == ours  # to the last bit
