"""Kinds of errors and their costs against tidecv, whose numbers were computed by tests/oracles/tide.py."""

import json
from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.evaluation.results_file import read_results
from ppdet_lite.reporting import curves
from ppdet_lite.reporting.errors import DetectionKind, error_costs
from ppdet_lite.reporting.summary import analyze
from tests.reporting.random_scene import random_scene
from tests.reporting.scenes import read_scene, write_scene

SCENES = json.loads((Path(__file__).parents[1] / "oracles/goldens/tide.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: f"seed {scene['seed']}, crowds {scene['crowds']}")
def test_kinds_and_costs_are_tidecvs(tmp_path, scene, monkeypatch):
    """With crowds only the kinds are compared: tidecv also corrects errors of detections matched to a crowd."""
    monkeypatch.setattr(curves, "RECALLS", np.arange(101) / 100)  # as in tidecv; COCO's differ in the last bit
    objects, detections = random_scene(scene["seed"], scene["crowds"])
    detections = [item for item in detections if item["category_id"] != 12]
    write_scene(tmp_path, objects, detections)
    dataset, found, truth = read_scene(tmp_path)
    analysis = analyze(dataset, read_results(tmp_path / "bbox.json", dataset))
    ours = {
        (int(dataset.image_ids[i]), tuple(box), score): kind
        for i, box, score, kind in zip(
            found.images, found.xywh.tolist(), found.scores.tolist(), analysis.errors.kinds, strict=True
        )
    }
    kinds = [ours.get((d["image_id"], tuple(d["bbox"]), d["score"]), DetectionKind.IGNORED) for d in detections]
    expected = [DetectionKind[{None: "ignored", "right": "correct"}.get(kind, kind).upper()] for kind in scene["kinds"]]
    assert kinds == expected and len(set(kinds)) >= 6
    if not scene["crowds"]:
        places = {(o["image_id"], o["category_id"], tuple(o["bbox"])): n for n, o in enumerate(objects)}
        rows = np.flatnonzero(analysis.errors.missed)
        missed = [
            places[
                int(dataset.image_ids[truth.images[i]]),
                int(dataset.category_ids[truth.classes[i]]),
                tuple(truth.xywh[i]),
            ]
            for i in rows
        ]
        assert sorted(missed) == scene["missed"]
        costs = error_costs(found, truth, analysis.errors, dataset.num_classes)
        assert costs.pop("AP50") == pytest.approx(scene["AP50"], abs=1e-9)
        assert costs == pytest.approx(scene["costs"], abs=1e-9)
