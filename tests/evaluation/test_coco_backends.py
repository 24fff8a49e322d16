"""faster-coco-eval and pycocotools: the same numbers to the last bit, and which of them is used."""

import copy
import logging
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from ppdet_lite.assembly.recipe import Evaluation
from ppdet_lite.core.errors import UserError
from ppdet_lite.evaluation import coco_backends
from ppdet_lite.evaluation.coco_backends import CocoEvaluation, require_backend
from ppdet_lite.evaluation.coco_metric import score_file
from tests.tiny_run import tiny_dataset

IMAGE_IDS = [5_000_000_000, 3, 12, 1, 0, 44]
CATEGORY_IDS = [90, 2, 3, 2**40]
SIDES = [0, 16, 32, 96, 100, 1e5]  # areas at the limits of small, medium, large and all


def truth_of(annotations: list[dict[str, Any]], images: list[int], categories: list[int]) -> dict[str, Any]:
    records = [record | {"id": i + 1} for i, record in enumerate(annotations)]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 300, "width": 300} for i in images],
        "categories": [{"id": i, "name": str(i)} for i in categories],
        "annotations": records,
    }


def record(image: int, category: int, box: Any, **more: Any) -> dict[str, Any]:
    xywh = [float(value) for value in box]
    return {"image_id": image, "category_id": category, "bbox": xywh, "area": xywh[2] * xywh[3], "iscrowd": 0} | more


def evaluate_both(truth: dict[str, Any], detections: list[dict[str, Any]]) -> tuple[CocoEvaluation, CocoEvaluation]:
    detections = [record | {"id": i + 1} for i, record in enumerate(detections)]
    results = []
    for name in ("pycocotools", "faster"):
        mine = copy.deepcopy(truth)
        results.append(require_backend(name).evaluate(mine, mine | {"annotations": copy.deepcopy(detections)}))
    return tuple(results)


def assert_equal(one: CocoEvaluation, other: CocoEvaluation) -> None:
    np.testing.assert_array_equal(one.precision, other.precision)
    np.testing.assert_array_equal(one.summary, other.summary)
    assert one.category_ids == other.category_ids


@pytest.mark.parametrize("kind", ["plain", "ties", "same boxes", "limits of areas", "negative sides", "stated areas"])
@pytest.mark.parametrize("seed", range(4))
def test_random_scenes_have_the_same_digits(kind: str, seed: int) -> None:
    """With crowds, categories and images without objects, up to 1500 detections, and some of them twice."""
    rng = np.random.default_rng(seed)
    images, categories = IMAGE_IDS[: seed + 2], CATEGORY_IDS[: seed + 1]
    count = [3, 20, 60, 200][seed]

    def boxes(number: int) -> np.ndarray:
        xywh = rng.uniform(0, 300, (number, 4))
        if kind == "ties":
            xywh = (xywh / 32).round() * 32
        if kind == "same boxes":
            xywh[:] = 10, 10, 32, 32
        if kind == "limits of areas":
            xywh[:, 2:] = rng.choice(SIDES, (number, 2))
        if kind == "negative sides":
            xywh[:, 2:] *= rng.choice([-1, 1], (number, 2))
        return xywh

    annotations = [
        record(rng.choice(images[:-1]).item(), rng.choice(categories).item(), box, iscrowd=int(rng.random() < 0.2))
        for box in boxes(count)
    ]
    if kind == "stated areas":
        for item in annotations:
            item["area"] = rng.choice([0, 1, 1023.99, 1024, 9216, 1e10, 1e10 + 5]).item()
    detections = []
    for box in boxes([0, 30, 1200, 300][seed]):
        image, category = rng.choice(images).item(), rng.choice(categories).item()
        if rng.random() < 0.7:
            item = annotations[rng.integers(count)]
            image, category = item["image_id"], item["category_id"]
            box = np.array(item["bbox"]) + (rng.random() > 0.3) * rng.normal(0, 8, 4)
        score = rng.integers(5) / 4 if kind == "ties" else rng.random()
        detections.append(record(image, category, box, score=float(score)))
    results = evaluate_both(truth_of(annotations, images, categories), detections + detections[:50])
    assert_equal(*results)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 101, 1023, 1025])
@pytest.mark.parametrize("correct", [[True], [True, False], [True, True], [True, True, False], [False, True, True]])
def test_a_first_correct_detection_is_rounded_as_by_pycocotools(count: int, correct: list[bool]) -> None:
    """Precision 1 - 2.2e-16 where one correct detection is the best of all; 1 where the second is correct, too."""
    boxes = [(60 * k, 0, 50, 50) for k in range(count)]
    annotations = [record(1, 1, box) for box in boxes]
    detections = [
        record(1, 1, boxes[k % count] if is_correct else (0, 200, 50, 50), score=1 - k / 10)
        for k, is_correct in enumerate(correct)
    ]
    official, faster = evaluate_both(truth_of(annotations, [1], [1]), detections)
    assert_equal(official, faster)
    if correct[0]:
        expected = 1.0 if correct[1:2] == [True] and count > 1 else 1 - 2**-52
    else:
        expected = 2 / 3 if count > 1 else 1 / 2
    assert faster.precision[0, 0, 0, 0, -1] == expected


def test_auto_is_faster_coco_eval_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Evaluation().backend == "auto"
    assert [require_backend(name).package for name in ("auto", "faster", "pycocotools")] == [
        "faster-coco-eval",
        "faster-coco-eval",
        "pycocotools",
    ]
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # an import of it fails
    monkeypatch.setattr(coco_backends.importlib.util, "find_spec", lambda name: None)
    assert require_backend("auto").package == "pycocotools"
    with pytest.raises(
        UserError, match=r"^eval\.backend: faster requires .* pip install faster-coco-eval, or set auto"
    ):
        require_backend("faster")


def test_a_broken_faster_coco_eval_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    monkeypatch.setattr(coco_backends.importlib.util, "find_spec", lambda name: object())
    with caplog.at_level(logging.WARNING):
        assert require_backend("auto").package == "pycocotools"
    assert "faster-coco-eval cannot be imported" in caplog.text


@pytest.mark.parametrize("backend", ["auto", "pycocotools"])
def test_the_log_has_the_backend_that_scored(tmp_path: Any, caplog: pytest.LogCaptureFixture, backend: str) -> None:
    dataset = tiny_dataset(tmp_path)
    (tmp_path / "bbox.json").write_text("[]")
    with caplog.at_level(logging.INFO):
        assert score_file(dataset, tmp_path / "bbox.json", backend)["AP"] == 0
    assert f"scored by {require_backend(backend)} in " in caplog.text
    assert "eval 1." in str(require_backend("auto")) and "pycocotools 2." in str(require_backend("pycocotools"))


def test_importing_the_package_imports_no_backend() -> None:
    code = (
        "import sys, ppdet_lite, ppdet_lite.evaluation.coco_backends; "
        "print([name for name in ('faster_coco_eval', 'pycocotools', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
