"""The numbers of a report against hand-computed values, slow loops, and pycocotools."""

import json
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.evaluation.coco_metric import score_file
from ppdet_lite.evaluation.results_file import read_results
from ppdet_lite.reporting.matching import top_detections
from ppdet_lite.reporting.summary import analyze, per_image, summarize
from tests.reporting import slow
from tests.reporting.random_scene import random_scene
from tests.reporting.scenes import official, read_scene, write_scene

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"


def numbers(folder, score):
    dataset = read_scene(folder)[0]
    analysis = analyze(dataset, read_results(folder / "bbox.json", dataset))
    metrics = score_file(dataset, folder / "bbox.json")
    return dataset, summarize(dataset, analysis, metrics, score), per_image(dataset, analysis, score)


def box(image, category, x, score=None, width=10):
    """A box of height 10 at (x, 20)."""
    item = {"image_id": image, "category_id": category, "bbox": [x, 20, width, 10]}
    return item if score is None else {**item, "score": score}


def test_a_case_by_hand(tmp_path):
    """Cats at 0 and 40, a dog at 80, a crowd of dogs from 200 on in image 30; a cat at 0 in image 4."""
    objects = [box(30, 3, 0), box(30, 3, 40), box(30, 9, 80), {**box(30, 9, 200, width=60), "iscrowd": 1}, box(4, 3, 0)]
    detections = [
        box(30, 3, 1, 0.9),  # a cat: IoU 9 / 11
        box(30, 3, 2, 0.8),  # the same again
        box(30, 3, 80, 0.7),  # the dog, as a cat
        box(30, 9, 210, 0.95),  # within the crowd
        box(30, 9, 150, 0.4),  # of nothing
        box(4, 3, 4, 0.6),  # a cat, but IoU 6 / 14
        box(4, 3, 0, 0.3),  # that cat
    ]
    write_scene(tmp_path, objects, detections)
    _, report, images = numbers(tmp_path, 0.35)
    cat, eel, dog, fox = (next(c for c in report["classes"] if c["name"] == n) for n in ("cat", "eel", "dog", "fox"))
    point = {"score": 0.35, "true_positives": 1, "false_positives": 3, "missed": 2, "precision": 0.25, "recall": 1 / 3}
    assert cat["at_score"] == pytest.approx({**point, "f1": 2 / 7})
    assert cat["objects"] == 3 and cat["detections"] == 5
    # after each: 1/1 of 3, 1/2, 1/3, 1/4, 2/5 -> F1 2/4, 2/5, 2/6, 2/7, 4/8; the higher score of equals
    assert cat["best"]["score"] == 0.9 and cat["best"]["f1"] == 0.5
    assert dog["objects"] == 1 and dog["detections"] == 1 and dog["best"] is None
    assert dog["at_score"]["precision"] == dog["at_score"]["recall"] == dog["at_score"]["f1"] == 0
    assert eel["AP"] is eel["AP50"] is eel["best"] is eel["at_score"]["recall"] is fox["AP50"] is None
    assert cat["AP50"] == pytest.approx((34 * 1.0 + 33 * 0.4) / 101)  # recalls to 0.33, then to 0.66
    assert report["confusion"]["names"] == ["cat", "eel", "dog", "fox", "background"]
    expected = np.zeros((5, 5), int)
    expected[0, 0], expected[0, 4], expected[2, 0], expected[4, 0], expected[4, 2] = 1, 2, 1, 2, 1
    assert report["confusion"]["counts"] == expected.tolist()
    kinds = {name: kind["count"] for name, kind in report["errors"]["kinds"].items()}
    # a second cat: IoU 8/12; one at 4: IoU 0.43 with the cat, which is found; the cat at 40 and the dog: one missed,
    # the other within reach
    assert kinds == {"classification": 1, "localisation": 1, "both": 0, "duplicate": 1, "background": 1, "missed": 1}
    rows = {
        row["image_id"]: [row[key] for key in ("objects", "true_positives", "false_positives", "missed")]
        for row in images
    }
    assert rows[30] == [3, 1, 3, 2] and rows[4] == [1, 0, 1, 1] and rows[40] == [0, 0, 0, 0]
    assert [group["objects"] for group in report["by_crowding"]] == [1, 3, 0, 0, 0]
    assert [group["objects"] for group in report["by_size"]] == [4, 0, 0, 0, 0]
    bins = {bin["from"]: (bin["detections"], bin["precision"]) for bin in report["calibration"]["bins"]}
    assert bins == {0.3: (1, 1.0), 0.4: (1, 0.0), 0.6: (1, 0.0), 0.7: (1, 0.0), 0.8: (1, 0.0), 0.9: (1, 1.0)}
    assert report["calibration"]["error"] == pytest.approx((0.7 + 0.4 + 0.6 + 0.7 + 0.8 + 0.1) / 6)


def test_recall_by_the_nearest_object_of_the_class(tmp_path):
    """Two cats with IoU 7.5 / 12.5, one of them found; a dog on one of them, found."""
    objects = [box(30, 3, 0), box(30, 3, 2.5), box(30, 9, 0)]
    write_scene(tmp_path, objects, [box(30, 3, 0, 0.9), box(30, 9, 0, 0.9), box(30, 3, 2.5, 0.1)])
    _, report, _ = numbers(tmp_path, 0.5)
    groups = {group["low"]: (group["objects"], group["recall"]) for group in report["by_nearness"]}
    assert groups == {0.0: (1, 1.0), 0.1: (0, None), 0.3: (0, None), 0.5: (2, 0.5)}


@pytest.mark.parametrize(("seed", "score"), [(0, 0.5), (1, 0.13), (2, 0.0), (3, 0.99)])
def test_rates_and_confusion_are_a_slow_count(tmp_path, seed, score):
    objects, detections = random_scene(seed)
    write_scene(tmp_path, objects, detections)
    dataset, report, _ = numbers(tmp_path, score)
    _, found, _ = read_scene(tmp_path)
    taken = [
        {"image_id": int(dataset.image_ids[i]), "category_id": int(dataset.category_ids[k]), "bbox": b, "score": s}
        for i, k, b, s in zip(*(part.tolist() for part in found))
    ]  # of each class and image 100, in the order of scores
    assert_slow(dataset, report, objects, taken, score)


@pytest.mark.skipif(not BCCD.is_dir(), reason="shared/data/bccd is not here")
def test_rates_and_confusion_are_a_slow_count_on_bccd(tmp_path):
    """Shifted boxes of the blood cells, some duplicated, missing or with another class."""
    dataset = CocoDataset(str(BCCD / "val"), str(BCCD / "val.json"))
    objects = dataset.ground_truth()["annotations"]
    rng = np.random.default_rng(0)
    detections = [
        {
            "image_id": item["image_id"],
            "category_id": item["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 4)),
            "bbox": (np.array(item["bbox"]) + rng.normal(0, 15, 4)).clip(1).tolist(),
            "score": float(rng.random()),
        }
        for item in objects
        for _ in range(rng.integers(0, 4))
    ]
    (tmp_path / "bbox.json").write_text(json.dumps(detections))
    results = read_results(tmp_path / "bbox.json", dataset)
    assert len(top_detections(results, dataset).scores) == len(detections)
    report = summarize(dataset, analyze(dataset, results), score_file(dataset, tmp_path / "bbox.json"), 0.3)
    assert_slow(dataset, report, objects, detections, 0.3)


def assert_slow(dataset, report, objects, detections, score):
    ids = [*dataset.category_ids.tolist(), None]
    pairs = slow.count(objects, detections, score)
    expected = [[pairs.get((truth, found), 0) for found in ids] for truth in ids]
    assert report["confusion"]["counts"] == expected and sum(map(sum, expected)) > 10
    tried = sorted({item["score"] for item in detections}, reverse=True)
    counts = [slow.count(objects, detections, s) for s in tried[:: max(1, len(tried) // 60)]]
    for category, row in zip(ids, report["classes"], strict=False):
        point = row["at_score"]
        assert (point["true_positives"], point["false_positives"], point["missed"]) == slow.rates(pairs, category)
        best = max(slow.f1(*slow.rates(at, category)) for at in counts)
        if best == 0:
            assert row["best"] is None or row["best"]["f1"] > 0
            continue
        at_best = slow.rates(slow.count(objects, detections, row["best"]["score"]), category)
        assert row["best"]["f1"] == pytest.approx(slow.f1(*at_best)) and row["best"]["f1"] >= best


@pytest.mark.parametrize("seed", range(3))
def test_averages_are_pycocotools(tmp_path, seed):
    """AP50 of each class; AP over the images of one crowding; AP of sizes where COCO has the same limits."""
    objects, detections = random_scene(seed)
    write_scene(tmp_path, objects, detections)
    dataset, report, images = numbers(tmp_path, 0.5)
    scorer = official(dataset, detections)
    for k, row in enumerate(report["classes"]):
        theirs = scorer.eval["precision"][0, :, scorer.params.catIds.index(dataset.category_ids[k]), 0, -1]
        assert (row["AP50"] is None and (theirs == -1).all()) or row["AP50"] == pytest.approx(theirs.mean(), abs=1e-12)
    medium = next(group for group in report["by_size"] if group["low"] == 32)
    assert medium["ap"] == pytest.approx(report["metrics"]["APm"], abs=1e-12)
    for group in report["by_crowding"]:
        high = group["high"] or np.inf
        chosen = [row["image_id"] for row in images if group["low"] <= row["objects"] < high]
        assert (group["objects"] == 0) == (not chosen)
        if chosen:
            stats = official(dataset, detections, chosen).stats
            assert (group["ap"], group["ap50"]) == pytest.approx((stats[0], stats[1]), abs=1e-12)
