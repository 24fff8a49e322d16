"""What the experiments measure, on cases small enough to compute by hand."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import build_model, load_config
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.synthetic.shapes import generate
from ppdet_lite.evaluation.results_file import Results
from tests.experiments import runs, teacher
from tests.experiments.definitions import EXPERIMENTS, MIMIC
from tests.experiments.measures import class_accuracy
from tests.experiments.results import _mean_and_deviation, _means, _scalars
from tests.experiments.runs import runs_of

SMALL = ["model.backbone.norm=gn", "model.neck.out_channels=32", "model.box_head.width=32"]


def write_coco(path: Path, boxes: dict[int, list[tuple[list[float], int]]]) -> CocoDataset:
    """Write the annotations of images of 100 x 100 pixels, which do not exist. A box is ([x, y, w, h], category)."""
    images = [{"id": i, "file_name": f"{i}.png", "height": 100, "width": 100} for i in boxes]
    rows = [(image, *row) for image, part in boxes.items() for row in part]
    annotations = [
        {"id": k, "image_id": image, "bbox": xywh, "category_id": category, "area": xywh[2] * xywh[3], "iscrowd": 0}
        for k, (image, xywh, category) in enumerate(rows, start=1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return CocoDataset(path.parent, path)


def test_class_accuracy_counts_the_best_detection_of_each_found_object(tmp_path: Path) -> None:
    """Of four objects one is not found, one has the wrong class, and one is right only at a lower score."""
    square, other = [10, 10, 40, 40], [55, 55, 40, 40]
    dataset = write_coco(tmp_path / "a.json", {7: [(square, 1), (other, 2)], 3: [(square, 1), (other, 1)]})
    rows = [
        (7, 1, [12, 10, 40, 40], 0.3),  # found, right
        (7, 2, [55, 55, 40, 40], 0.4),  # right only here:
        (7, 1, [55, 55, 40, 38], 0.9),  # the higher score has another class
        (3, 2, square, 0.2),  # found, wrong
        (3, 1, [75, 75, 20, 20], 0.9),  # IoU 0.25 with `other`
        (3, 1, other, 0.1),  # found, right
    ]
    keys = ("image_id", "category_id", "bbox", "score")
    (tmp_path / "bbox.json").write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
    assert class_accuracy(dataset, tmp_path / "bbox.json") == 2 / 4
    (tmp_path / "bbox.json").write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in rows[:5]]))
    assert class_accuracy(dataset, tmp_path / "bbox.json") == 1 / 3
    (tmp_path / "bbox.json").write_text("[]")
    assert class_accuracy(dataset, tmp_path / "bbox.json") == 0


def test_teacher_classifies_each_box_by_its_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With group norm the probabilities of a box do not depend on the others, nor on how patches are grouped."""
    generate(tmp_path / "shapes", 1, 6, size=128)
    data = [f"data.{split}.images={tmp_path}/shapes/{split}" for split in ("train", "val")]
    data += [f"data.{s}.annotations={tmp_path}/shapes/annotations/instances_{s}.json" for s in ("train", "val")]
    config = load_config(Path(__file__).parent / "detector.yml", [*SMALL, *data, MIMIC])
    dataset = CocoDataset(tmp_path / "shapes/val", tmp_path / "shapes/annotations/instances_val.json")
    model = build_model(config, dataset.class_names)
    paddle.nn.initializer.Normal(0, 0.5)(model.mimic.classify.weight)
    boxes = {int(i): dataset.annotations(k).boxes for k, i in enumerate(dataset.image_ids)}
    together = teacher.teacher_probabilities(model, dataset, config, boxes)
    assert sorted(together) == sorted(i for i, part in boxes.items() if len(part))
    monkeypatch.setattr(teacher, "PATCHES", 1)
    for image_id, part in boxes.items():
        for k, box in enumerate(part):
            alone = teacher.teacher_probabilities(model, dataset, config, {image_id: box[None]})
            np.testing.assert_allclose(alone[image_id][0], together[image_id][k], atol=1e-5)
    rows = np.concatenate(list(together.values()))
    assert rows.std(axis=0).max() > 1e-3  # boxes differ
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)

    nothing = Results(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4)), np.zeros(0))
    assert [len(part.scores) for part in teacher.combined_scores(model, dataset, config, nothing).values()] == [0, 0]
    first = min(together)
    box, order = boxes[first][0], np.argsort(together[first][0][:6])
    said = Results(
        np.array([first, first]),
        dataset.category_ids[order[[-1, 0]]],
        np.array([[*box[:2], *(box[2:] - box[:2])]] * 2, np.float64),
        np.array([0.5, 0.8]),
    )
    combined = teacher.combined_scores(model, dataset, config, said)
    probabilities = together[first][0][order[[-1, 0]]]
    np.testing.assert_allclose(combined["product"].scores, np.array([0.5, 0.8]) * probabilities, atol=1e-5)
    np.testing.assert_allclose(combined["mean"].scores, (np.array([0.5, 0.8]) + probabilities) / 2, atol=1e-5)


def test_runs_have_valid_configs_and_see_equally_many_images() -> None:
    for experiment in EXPERIMENTS.values():
        runs = runs_of(experiment)
        assert len({run.output for run in runs}) == len(runs) == 3 * len(experiment.variants)
        for run in runs_of(experiment, (0,)):
            arguments = run.arguments
            config = load_config(arguments[2], arguments[arguments.index("-o") + 1 :])
            steps = int(config["train"]["length"].split()[0])
            seen = {"context": 3200, "cells": 1800 if run.variant.name == "gn" else 1200}.get(experiment.name, 1600)
            assert steps * config["data"]["loader"]["batch_size"] == seen
            assert config["schedule"]["warmup_iterations"] * config["data"]["loader"]["batch_size"] == 200


def test_only_uninterrupted_runs_record_processor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is a program that only creates the run folder."""
    monkeypatch.setattr(runs, "OUTPUT", tmp_path)
    first, second = runs_of(EXPERIMENTS["batch"], (0, 1))[:: len(EXPERIMENTS["batch"].variants)]
    program = tmp_path / "train"
    program.write_text(f"#!/bin/sh\nmkdir -p {first.folder}\n")
    program.chmod(0o755)
    monkeypatch.setattr(runs.sys, "executable", str(program))
    second.folder.mkdir(parents=True)
    runs.train_all([first, second], jobs=1)
    assert json.loads((first.folder / "done.json").read_text()).keys() == {"cpu_seconds"}
    assert second.is_done and json.loads((second.folder / "done.json").read_text()) == {}


def test_summaries_of_seeds() -> None:
    assert _mean_and_deviation([0.5, 0.6, 0.7]) == "0.600 ± 0.100"
    assert _mean_and_deviation([0.5]) == "0.500"
    assert _mean_and_deviation([100.0, 104.0]) == "102 ± 3"
    row = {"AP": 0.5, "offsets": {"layer": {}}, "val_agreeing": {"AP": 0.6}}
    assert _scalars(row) == {"AP": 0.5, "val_agreeing AP": 0.6}
    moments = {"small": {"mean": 1.0, "std": 0.1, "count": 3}, "large": {"mean": 2.0, "std": 0.2, "count": 4}}
    assert _means({"layers": ["a"], "effective_dilation": moments}) == {
        "effective_dilation": [1.0, 2.0],
        "deviation": [0.1, 0.2],
    }
