"""Matching against pycocotools, detection by detection."""

import numpy as np
import pytest
from pycocotools import mask

from ppdet_lite.reporting import matching
from ppdet_lite.reporting.matching import match, overlapping_pairs, pair_ious, rank_within
from tests.reporting.random_scene import IDS, random_scene
from tests.reporting.scenes import official, read_scene, write_scene


def test_ranks_within_groups():
    assert rank_within(np.array([5, 2, 5, 5, 2, 9])).tolist() == [0, 0, 1, 2, 1, 0]
    assert rank_within(np.array([], np.int64)).tolist() == []


def test_ious_are_pycocotools_to_the_last_bit():
    rng = np.random.default_rng(0)
    found, truth, crowd = rng.uniform(0, 50, (40, 4)), rng.uniform(0, 50, (30, 4)), rng.random(30) < 0.3
    found[0, 2] = truth[0, 3] = 0
    d, g = (part.ravel() for part in np.meshgrid(range(40), range(30), indexing="ij"))
    ours = pair_ious(found[d], truth[g], crowd[g]).reshape(40, 30)
    np.testing.assert_array_equal(ours, mask.iou(found, truth, crowd.tolist()))


@pytest.mark.parametrize("seed", range(6))
def test_every_match_is_pycocotools(tmp_path, seed, monkeypatch):
    """All thresholds and sizes; crowds, equal scores, images without objects, more than 100 detections of a class."""
    monkeypatch.setattr(matching, "CHUNK", 100)
    objects, detections = random_scene(seed)
    write_scene(tmp_path, objects, detections)
    dataset, found, truth = read_scene(tmp_path)
    scorer = official(dataset, detections)
    pairs = overlapping_pairs(found, truth, len(dataset))
    images = {id: n for n, id in enumerate(IDS)}
    for number, area_range in enumerate([None, *map(tuple, scorer.params.areaRng[1:])]):
        ours = match(found, truth, pairs, area_range)
        compared = 0
        for theirs in scorer.evalImgs:
            if theirs is None or theirs["aRng"] != scorer.params.areaRng[number]:
                continue
            k = dataset.category_ids.tolist().index(theirs["category_id"])
            own = np.flatnonzero((found.images == images[theirs["image_id"]]) & (found.classes == k))
            assert found.scores[own].tolist() == theirs["dtScores"]
            assert (ours.objects[:, own] + 1 == theirs["dtMatches"]).all()  # ids count from 1
            assert (ours.ignored[:, own] == theirs["dtIgnore"]).all()
            compared += len(own)
        assert compared == len(found.scores) > 100 and (ours.objects >= 0).any()


def test_nothing_found_and_nothing_to_find(tmp_path):
    objects, detections = random_scene(0)
    for some, others in (([], detections), (objects, []), ([], [])):
        write_scene(tmp_path, some, others)
        dataset, found, truth = read_scene(tmp_path)
        ours = match(found, truth, overlapping_pairs(found, truth, len(dataset)))
        assert ours.objects.shape == ours.ignored.shape == (10, len(found.scores))
        assert (ours.objects == -1).all() and not ours.ignored.any()
