"""AP of resampled images against pycocotools on copies of them; the comparison of two runs."""

import csv
import json
import re

import numpy as np
import pytest

from ppdet_lite.core.errors import UserError
from ppdet_lite.evaluation.coco_metric import score_file
from ppdet_lite.reporting.bootstrap import draw_selections, paired_bootstrap, resampled_aps
from ppdet_lite.reporting.compare import compare_runs, format_comparison
from ppdet_lite.reporting.matching import match, overlapping_pairs
from tests.reporting.random_scene import IDS, random_scene
from tests.reporting.scenes import official, read_scene, write_scene


def scene(seed):
    """A random scene with crowds and distinct scores: copies of an image would be sorted between equal scores."""
    objects, detections = random_scene(seed)
    for n, item in enumerate(detections):
        item["score"] += n * 1e-6
    return objects, detections


def matched(folder):
    dataset, found, truth = read_scene(folder)
    return dataset, truth, (found, match(found, truth, overlapping_pairs(found, truth, len(dataset))))


@pytest.mark.parametrize("seed", range(3))
def test_an_image_drawn_twice_counts_as_a_copy_would(tmp_path, seed):
    objects, detections = scene(seed)
    write_scene(tmp_path, objects, detections)
    dataset, truth, (found, matches) = matched(tmp_path)
    selections = draw_selections(len(IDS), 4, seed)
    assert (selections.sum(axis=1) == len(IDS)).all() and (selections == 0).any() and (selections > 1).any()
    ours = resampled_aps(found, truth, matches, selections, dataset.num_classes)
    for counts, aps in zip(selections.tolist(), ours, strict=True):
        copies = [(id, 100 * id + n) for id, count in zip(IDS, counts, strict=True) for n in range(count)]
        again = [
            [{**item, "image_id": copy} for id, copy in copies for item in items if item["image_id"] == id]
            for items in (objects, detections)
        ]
        write_scene(tmp_path, *again, ids=[copy for _, copy in copies])
        drawn, *_ = read_scene(tmp_path)
        precision = official(drawn, again[1]).eval["precision"][:, :, :, 0, -1]
        order = np.argsort(np.argsort(dataset.category_ids))  # class -> place among pycocotools' sorted ids
        for k, ap in enumerate(aps):
            theirs = precision[:, :, order[k]]
            assert np.isnan(ap) if (theirs == -1).all() else ap == pytest.approx(theirs.mean(), abs=1e-12)


def test_intervals_are_percentiles_of_paired_differences(tmp_path, monkeypatch):
    """The second run is the first one without a third of its detections; chunks change nothing."""
    objects, detections = scene(3)
    write_scene(tmp_path, objects, detections)
    dataset, truth, first = matched(tmp_path)
    write_scene(tmp_path, objects, detections[::3])
    _, _, second = matched(tmp_path)
    selections = draw_selections(len(IDS), 50)
    overall, classes = paired_bootstrap(truth, [first, second], selections, dataset.num_classes, 0.8)
    aps = [
        np.array([resampled_aps(run[0], truth, run[1], one[None], dataset.num_classes)[0] for one in selections])
        for run in (first, second)
    ]
    differences = np.nanmean(aps[1], axis=1) - np.nanmean(aps[0], axis=1)
    assert (overall.low, overall.high) == pytest.approx(np.quantile(differences, [0.1, 0.9]), abs=1e-12)
    assert overall.difference == pytest.approx(overall.second - overall.first)
    by_class = (aps[1] - aps[0])[:, 0]
    assert (classes[0].low, classes[0].high) == pytest.approx(np.nanquantile(by_class, [0.1, 0.9]), abs=1e-12)
    fox = dataset.class_names.index("fox")
    assert classes[fox].first is classes[fox].low is None
    monkeypatch.setattr("ppdet_lite.reporting.bootstrap.CHUNK", 1)
    assert paired_bootstrap(truth, [first, second], selections, dataset.num_classes, 0.8) == (overall, classes)


def test_comparison_of_two_runs(tmp_path):
    objects, detections = scene(4)
    write_scene(tmp_path, objects, detections)
    dataset, *_ = read_scene(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bbox.json").write_text((tmp_path / "bbox.json").read_text())
    worse = [item for item in detections if item["category_id"] != 3]
    (tmp_path / "b.json").write_text(json.dumps(worse))
    comparison = compare_runs(
        dataset, [tmp_path / "a", tmp_path / "b.json"], folder=tmp_path / "comparison", selections=100
    )
    assert comparison == json.loads((tmp_path / "comparison/comparison.json").read_text())
    a, b = score_file(dataset, tmp_path / "bbox.json"), score_file(dataset, tmp_path / "b.json")
    assert comparison["metrics"]["AP75"] == [a["AP75"], b["AP75"]]
    assert (comparison["AP"]["first"], comparison["AP"]["second"]) == pytest.approx((a["AP"], b["AP"]), abs=1e-12)
    rows = {row["name"]: row for row in csv.DictReader((tmp_path / "comparison/comparison.csv").open())}
    for row in comparison["classes"]:
        assert rows[row["name"]]["difference"] == ("" if row["difference"] is None else str(row["difference"]))
    cat, dog = (next(row for row in comparison["classes"] if row["name"] == name) for name in ("cat", "dog"))
    assert cat["difference"] == pytest.approx(-a["per_class"]["cat"]) and cat["high"] < 0
    assert dog["difference"] == dog["low"] == dog["high"] == 0
    page = (tmp_path / "comparison/comparison.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="([a-z]+)"', page) == ["ap", "classes", "numbers", "errors"]
    assert all(source.startswith("data:image/svg") for source in re.findall(r'src="([^"]*)"', page))
    assert f"<b>{comparison['AP']['difference']:+.3f}</b>" in page and "contains 0" not in page
    text = format_comparison(comparison)
    assert f"{a['AP']:.3f}" in text and "95% interval, 100 selections" in text and "  --" in text  # a fox
    assert comparison["error_costs"]["false_negatives"][1] > comparison["error_costs"]["false_negatives"][0]


def test_the_losses_of_the_runs_are_shown(tmp_path):
    write_scene(tmp_path, [], [])
    dataset, *_ = read_scene(tmp_path)
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "bbox.json").write_text("[]")
    (tmp_path / "b/curves.png").write_bytes(b"losses")
    compare_runs(dataset, [tmp_path / "a", tmp_path / "b"], folder=tmp_path / "comparison", selections=2)
    page = (tmp_path / "comparison/comparison.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 1 and "<figcaption>B: losses, AP and learning rate" in page
    assert "missed at any score" in page


def test_a_comparison_of_one_image_is_refused(tmp_path):
    write_scene(tmp_path, [], [], ids=[30])
    dataset, *_ = read_scene(tmp_path)
    with pytest.raises(UserError, match="requires at least two images, not 1"):
        compare_runs(dataset, [tmp_path / "bbox.json"] * 2)


def test_two_runs_without_anything(tmp_path):
    """Without detections and objects, the comparison is written but contains no numbers."""
    write_scene(tmp_path, [], [])
    dataset, *_ = read_scene(tmp_path)
    comparison = compare_runs(dataset, [tmp_path / "bbox.json"] * 2, folder=tmp_path / "comparison", selections=2)
    assert comparison["AP"] == dict.fromkeys(("first", "second", "difference", "low", "high"))
    assert "There is no object to detect" in (tmp_path / "comparison/comparison.html").read_text(encoding="utf-8")
