"""Write and read small datasets and results, and evaluate them with pycocotools."""

import contextlib
import io
import json
from pathlib import Path

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.evaluation.results_file import read_results
from ppdet_lite.reporting.matching import Detections, GroundTruth, ground_truth_of, top_detections
from tests.reporting.random_scene import CATEGORIES, IDS


def write_scene(folder: Path, objects: list[dict], detections: list[dict], ids=IDS, size=(200, 300)) -> None:
    """Write val.json and bbox.json; objects and detections have image_id, category_id, bbox and so on."""
    height, width = size
    (folder / "images").mkdir(exist_ok=True)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in ids],
        "categories": [{"id": i, "name": name} for i, name in CATEGORIES.items()],
        "annotations": [
            {"id": n, "iscrowd": 0, "area": item["bbox"][2] * item["bbox"][3], **item}
            for n, item in enumerate(objects, start=1)
        ],
    }
    (folder / "val.json").write_text(json.dumps(content))
    (folder / "bbox.json").write_text(json.dumps(detections))


def read_scene(folder: Path) -> tuple[CocoDataset, Detections, GroundTruth]:
    """Return the dataset, detections and objects of a folder written by `write_scene`."""
    dataset = CocoDataset(str(folder / "images"), str(folder / "val.json"))
    return dataset, top_detections(read_results(folder / "bbox.json", dataset), dataset), ground_truth_of(dataset)


def official(dataset: CocoDataset, detections: list[dict], image_ids: list[int] | None = None) -> COCOeval:
    """Return the evaluation by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset.ground_truth()
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes([dict(item) for item in detections]), "bbox")
        if image_ids is not None:
            scorer.params.imgIds = image_ids
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return scorer
