"""What is measured of a trained run, besides the metrics of its evaluation."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.assembly.setup import build_dataset, load_config
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.registry import build
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.coco_metric import score_file
from ppdet_lite.evaluation.evaluate import RESULTS, evaluate
from ppdet_lite.evaluation.offset_table import offset_table
from ppdet_lite.evaluation.results_file import read_results
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.reporting.matching import ground_truth_of, overlapping_pairs, top_detections
from ppdet_lite.storage.files import write_json
from tests.experiments.runs import Run
from tests.experiments.teacher import combined_scores, load_with_teacher, teacher_accuracy

METRICS = ("AP", "AP50", "AP75")


def measured(run: Run) -> dict[str, Any]:
    """Return what is measured of a run. It is computed once and kept in the run's folder."""
    path = run.folder / "measured.json"
    if not path.is_file():
        write_json(path, _measure(run))
    return json.loads(path.read_text(encoding="utf-8"))


def class_accuracy(dataset: CocoDataset, results: Path) -> float:
    """Return the share of objects with the right class, of those that are found.

    An object is found if a detection of any class has an IoU of at least 0.5 with it; that with the highest score says
    its class. 0 if none is found.
    """
    detections, truth = top_detections(read_results(results, dataset), dataset), ground_truth_of(dataset)
    pairs = overlapping_pairs(detections, truth, len(dataset))
    near = (pairs.ious >= 0.5) & ~truth.is_crowd[pairs.objects]
    objects, first = np.unique(pairs.objects[near], return_index=True)  # detections are sorted by score
    said = detections.classes[pairs.detections[near][first]]
    return float((said == truth.classes[objects]).mean()) if len(objects) else 0.0


def _measure(run: Run) -> dict[str, Any]:
    config = load_config(run.folder / "config.yml", [f"weights={run.folder}"])
    dataset = build_dataset(config, "val")
    trained = load_trained(config)
    metrics = json.loads((run.folder / "metrics.json").read_text(encoding="utf-8"))
    values: dict[str, Any] = {name: metrics[name] for name in METRICS}
    values["accuracy"] = class_accuracy(dataset, run.folder / RESULTS)
    values["parameters"] = sum(parameter.size for parameter in trained.model.parameters())
    if (name := run.experiment.other) is not None:
        folder, changed = run.folder / name, [f"weights={run.folder}", *_data(config["data"]["val"]["images"], name)]
        other = build_dataset(load_config(run.folder / "config.yml", changed), "val")
        metrics = evaluate(Detector.from_trained(trained), other, build(config["data"]["loader"]), folder)
        values[name] = {key: metrics[key] for key in METRICS} | {"accuracy": class_accuracy(other, folder / RESULTS)}
    if config["model"]["mimic"] is not None:
        model, _ = load_with_teacher(config, run.folder)
        values |= _with_teacher(model, dataset, config, run.folder)
        if name is not None:
            values[name] |= _with_teacher(model, other, config, folder)
    if config["model"]["backbone"]["deformable"] is not None:
        values["offsets"] = offset_table(trained, dataset, build(config["data"]["loader"]))
    return values


def _with_teacher(model: FasterRCNN, dataset: CocoDataset, config: Config, folder: Path) -> dict[str, Any]:
    """Return the teacher's accuracy, and the metrics of the detections in a folder with combined scores."""
    values: dict[str, Any] = {"teacher_accuracy": teacher_accuracy(model, dataset, config)}
    for name, rescored in combined_scores(model, dataset, config, read_results(folder / RESULTS, dataset)).items():
        values[name] = _score(dataset, rescored, folder / f"{name}.json")
    return values


def _data(images: str, name: str) -> list[str]:
    """Return the overrides that select other images, in a folder beside the validation images."""
    folder = Path(images).parent
    return [f"data.val.images={folder / name}", f"data.val.annotations={folder}/annotations/instances_{name}.json"]


def _score(dataset: CocoDataset, results: Any, path: Path) -> dict[str, float]:
    """Return the metrics of results, which are written to a file."""
    columns = (column.tolist() for column in results)
    keys = ("image_id", "category_id", "bbox", "score")
    write_json(path, [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)])
    metrics = score_file(dataset, path)
    return {name: metrics[name] for name in METRICS}
