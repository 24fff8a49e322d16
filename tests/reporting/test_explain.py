"""Results with one fault each, and the explanation reported for them."""

import numpy as np
import pytest

from ppdet_lite.evaluation.results_file import Results, read_results
from ppdet_lite.reporting.explain import explain
from ppdet_lite.reporting.summary import analyze
from tests.reporting.random_scene import random_scene
from tests.reporting.scenes import read_scene, write_scene


def explanation(folder, change, objects=None):
    """Return the explanation for the ground truth as detections after a change, with AP 0."""
    objects = random_scene(0, crowds=False)[0] if objects is None else objects
    write_scene(folder, objects, [])
    dataset, _, truth = read_scene(folder)
    scores = np.linspace(0.9, 0.3, len(truth.images))
    found = Results(dataset.image_ids[truth.images], dataset.category_ids[truth.classes], truth.xywh.copy(), scores)
    return explain(dataset, analyze(dataset, change(found)), 0.0)


def boxes(change):
    return lambda found: found._replace(xywh=change(found.xywh))


CAUSES = {
    "corners (x1, y1, x2, y2)": boxes(lambda b: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1)),
    "x and y are swapped": boxes(lambda b: b[:, [1, 0, 3, 2]]),
    "start with their center": boxes(lambda b: np.concatenate([b[:, :2] + b[:, 2:] / 2, b[:, 2:]], axis=1)),
    "relative to the image size": boxes(lambda b: b / [300, 200, 300, 200]),
    "scaled; the factor to undo it is about 0.50": boxes(lambda b: b * 2),
    "Classes are mixed up": lambda found: found._replace(
        category_ids=np.array([{3: 9, 9: 5, 5: 3}[k] for k in found.category_ids.tolist()])
    ),
    "close but shifted: the median IoU": boxes(
        lambda b: b - np.concatenate([b[:, 2:] * [0.4, 0], b[:, 2:] * 0], axis=1)
    ),
    "The highest score is only": lambda found: found._replace(scores=found.scores / 100),
    "images with objects have detections": lambda found: Results(*(part[found.image_ids == 30] for part in found)),
    "Nothing was detected": lambda found: Results(*(part[:0] for part in found)),
    "Other classes, box formats or scales do not explain it": boxes(lambda b: b * 0 + [0, 0, 3, 3]),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_cause_is_reported_first(tmp_path, cause):
    lines = explanation(tmp_path, CAUSES[cause])
    assert cause in lines[0]
    if cause == "Classes are mixed up":
        assert "cat as dog (" in lines[0] and "dog as eel (" in lines[0] and "eel as cat (" in lines[0]


def test_nothing_to_find(tmp_path):
    assert "no object is annotated" in explanation(tmp_path, lambda found: found, [])[0]
    crowds = [{**item, "iscrowd": 1} for item in random_scene(0, crowds=False)[0]]
    assert f"all {len(crowds)} annotations are crowds" in explanation(tmp_path, lambda found: found, crowds)[0]


def test_nothing_is_reported_if_ap_is_not_near_zero(tmp_path):
    write_scene(tmp_path, *random_scene(0))
    dataset, *_ = read_scene(tmp_path)
    analysis = analyze(dataset, read_results(tmp_path / "bbox.json", dataset))
    assert explain(dataset, analysis, 0.011) == [] and explain(dataset, analysis, 0.009) != []
