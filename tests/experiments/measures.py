"""What is measured of a trained run, besides the metrics of its evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.assembly.setup import build_dataset, load_config
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.config.registry import build
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.coco_metric import score_file
from ppdet_lite.evaluation.evaluate import RESULTS, evaluate
from ppdet_lite.evaluation.offset_table import offset_table
from ppdet_lite.evaluation.results_file import read_results
from ppdet_lite.reporting.matching import ground_truth_of, overlapping_pairs, top_detections
from ppdet_lite.storage.files import write_json
from tests.experiments.runs import Run
from tests.experiments.teacher import combined_scores, load_with_teacher, teacher_accuracy

METRICS = ("AP", "AP50", "AP75")
AGREEING = "val_agreeing"  # validation images whose companions agree with the class as often as in training


def measured(run: Run) -> dict[str, Any]:
    """Return what is measured of a run. It is computed once and kept in the run's folder."""
    path = run.folder / "measured.json"
    if not path.is_file():
        write_json(path, _measure(run))
    return json.loads(path.read_text(encoding="utf-8"))


def class_accuracy(dataset: CocoDataset, results: Path) -> float:
    """Return the share of objects with the right class, of those that are found.

    An object is found if a detection of any class has an IoU of at least 0.5 with it; that with the highest score says
    its class.
    """
    detections, truth = top_detections(read_results(results, dataset), dataset), ground_truth_of(dataset)
    pairs = overlapping_pairs(detections, truth, len(dataset))
    near = (pairs.ious >= 0.5) & ~truth.is_crowd[pairs.objects]
    objects, first = np.unique(pairs.objects[near], return_index=True)  # detections are sorted by score
    said = detections.classes[pairs.detections[near][first]]
    return float((said == truth.classes[objects]).mean())


def _measure(run: Run) -> dict[str, Any]:
    config = load_config(run.folder / "config.yml", [f"weights={run.folder}"])
    dataset = build_dataset(config, "val")
    trained = load_trained(config)
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    values: dict[str, Any] = {name: metrics[name] for name in METRICS}
    values["accuracy"] = class_accuracy(dataset, run.folder / RESULTS)
    values["parameters"] = sum(parameter.size for parameter in trained.model.parameters())
    if run.experiment.name == "context":
        folder, changed = run.folder / AGREEING, [f"weights={run.folder}", *_data(config["data"]["val"]["images"])]
        agreeing = build_dataset(load_config(run.folder / "config.yml", changed), "val")
        metrics = evaluate(Detector.from_trained(trained), agreeing, build(config["data"]["loader"]), folder)
        values[AGREEING] = {name: metrics[name] for name in METRICS}
        values[AGREEING]["accuracy"] = class_accuracy(agreeing, folder / RESULTS)
    if config["model"]["mimic"] is not None:
        model, _ = load_with_teacher(config, run.folder)
        values["teacher_accuracy"] = teacher_accuracy(model, dataset, config)
        results = read_results(run.folder / RESULTS, dataset)
        for name, rescored in combined_scores(model, dataset, config, results).items():
            values[name] = _score(dataset, rescored, run.folder / f"{name}.json")
        if run.experiment.name == "context":
            values[AGREEING]["teacher_accuracy"] = teacher_accuracy(model, agreeing, config)
            rescored = combined_scores(model, agreeing, config, read_results(folder / RESULTS, agreeing))
            for name, part in rescored.items():
                values[AGREEING][name] = _score(agreeing, part, folder / f"{name}.json")
    if config["model"]["backbone"]["deformable"] is not None:
        values["offsets"] = offset_table(trained, dataset, build(config["data"]["loader"]))
    return values


def _data(images: str) -> list[str]:
    """Return the overrides that select the agreeing images beside validation images."""
    folder = Path(images).parent
    return [
        f"data.val.images={folder / AGREEING}",
        f"data.val.annotations={folder}/annotations/instances_{AGREEING}.json",
    ]


def _score(dataset: CocoDataset, results: Any, path: Path) -> dict[str, float]:
    """Return the metrics of results, which are written to a file."""
    columns = (column.tolist() for column in results)
    keys = ("image_id", "category_id", "bbox", "score")
    write_json(path, [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)])
    metrics = score_file(dataset, path)
    return {name: metrics[name] for name in METRICS}
