"""What tidecv says of random scenes: python -m tests.oracles.tide writes goldens/tide.json

Or, printed, of any results: python -m tests.oracles.tide ANNOTATIONS.json RESULTS.json
It needs tidecv and NumPy in an environment of its own.
"""

import json
import sys
from pathlib import Path

import numpy as np
from tidecv import TIDE, Data

from tests.reporting.random_scene import random_scene

GOLDENS = Path(__file__).parent / "goldens" / "tide.json"
SCENES = [(0, False), (1, False), (2, False), (3, True)]  # seed, with crowds
NAMES = {
    "Cls": "classification",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
    "FalsePos": "false_positives",
    "FalseNeg": "false_negatives",
}


def judge(objects: list[dict], detections: list[dict]) -> dict:
    """AP50, the cost of each kind, each detection's kind (null: left out) and the positions of missed objects."""
    truth, found = Data("truth"), Data("found")
    for item in objects:
        add = truth.add_ignore_region if item.get("iscrowd") else truth.add_ground_truth
        add(item["image_id"], item["category_id"], item["bbox"])
    for item in detections:
        truth.add_image(item["image_id"], str(item["image_id"]))
        found.add_detection(item["image_id"], item["category_id"], item["score"], item["bbox"])
    tide = TIDE()
    run = tide.evaluate(truth, found, mode=TIDE.BOX)
    costs = {**tide.get_main_errors()["found"], **tide.get_special_errors()["found"]}
    kinds: list[str | None] = [None] * len(detections)
    for pred in found.annotations:
        if pred.get("used"):
            kinds[pred["_id"]] = "right"
    missed = []
    for error in run.errors:
        if hasattr(error, "pred"):
            if error.pred["used"] is not None:  # else of a crowd
                kinds[error.pred["_id"]] = NAMES[error.short_name]
        else:
            missed.append(error.gt["_id"])
    return {
        "AP50": run.ap / 100,
        "costs": {NAMES[name]: value / 100 for name, value in costs.items()},
        "kinds": kinds,
        "missed": sorted(missed),
    }


def golden_scene(seed: int, crowds: bool) -> tuple[list[dict], list[dict]]:
    """A random scene without detections of a class that has no objects, which tidecv counts as AP 0."""
    objects, detections = random_scene(seed, crowds)
    return objects, [item for item in detections if item["category_id"] != 12]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        annotations, results = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:])
        said = judge(annotations["annotations"], results)
        kinds, counts = np.unique([kind or "left out" for kind in said["kinds"]], return_counts=True)
        print(f"AP50 {said['AP50']:.6f}  {dict(zip(kinds.tolist(), counts.tolist()))}  missed {len(said['missed'])}")
        print({name: round(value, 6) for name, value in said["costs"].items()})
    else:
        scenes = [{"seed": s, "crowds": c, **judge(*golden_scene(s, c))} for s, c in SCENES]
        GOLDENS.write_text(json.dumps(scenes) + "\n", encoding="utf-8")
