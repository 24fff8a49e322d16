"""The files of a report, as tools/eval.py writes them."""

import csv
import json
import logging
import runpy
import sys
from pathlib import Path

import pytest

from tests.tiny_run import tiny_config

EVAL = Path(__file__).parents[2] / "tools/eval.py"


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """Run tools/eval.py --results on the tiny dataset; returns (exit code, stderr, folder of the report)."""
    config = tiny_config(tmp_path)
    root = logging.getLogger("ppdet_lite")
    before = (root.handlers[:], root.level, root.propagate)

    def call(detections, *arguments):
        (tmp_path / "bbox.json").write_text(json.dumps(detections))
        monkeypatch.setattr(
            sys, "argv", ["eval.py", "-c", str(config), "--results", str(tmp_path / "bbox.json"), *arguments]
        )
        try:
            runpy.run_path(str(EVAL), run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().err, tmp_path / "told"

    yield call
    root.handlers[:], root.level, root.propagate = before


def test_numbers_are_written_as_json_and_csv(report, tmp_path):
    detections = [
        {"image_id": 7, "category_id": 5, "bbox": [5, 10, 30, 40], "score": 0.9},
        {"image_id": 7, "category_id": 9, "bbox": [5, 10, 30, 40], "score": 0.6},
        {"image_id": 12, "category_id": 9, "bbox": [5, 10, 30, 40], "score": 0.3},
    ]
    code, err, folder = report(detections, "--report", str(tmp_path / "told"), "--score", "0.25")
    assert (code, err) == (0, "")
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["metrics"]["AP"] == pytest.approx(0.5) and numbers["score"] == 0.25
    official = json.loads((tmp_path / "metrics.json").read_text())
    assert numbers["metrics"] == {k: None if v == -1 else v for k, v in official.items() if k[0] == "A"}
    assert numbers["run"]["images"] == numbers["run"]["detections"] == 3
    assert numbers["confusion"] == {"names": ["cat", "dog", "background"], "counts": [[1, 0, 0], [0, 0, 2], [0, 2, 0]]}
    classes, images = (list(csv.DictReader((folder / f"{name}.csv").open())) for name in ("classes", "images"))
    assert [row["name"] for row in classes] == ["cat", "dog"]
    assert classes[0]["best_f1_score"] == "0.9" and classes[0]["at_precision"] == "1.0"
    assert (classes[1]["best_f1_score"], classes[1]["at_false_positives"], classes[1]["at_missed"]) == ("", "2", "2")
    assert [row["file"] for row in images] == ["7.png", "3.png", "12.png"]
    assert [row["missed"] for row in images] == ["1", "1", "0"] and images[2]["f1"] == "0.0"


@pytest.mark.parametrize("arguments", [["--score", "0.3"], ["--report", "x", "--score", "1.5"]])
def test_a_score_belongs_to_a_report(report, arguments):
    code, err, _ = report([], *arguments)
    assert code == 2 and "--score is a number from 0 to 1, and goes with --report" in err


def test_a_report_of_nothing_found(report, tmp_path):
    code, err, folder = report([], "--report", str(tmp_path / "told"))
    assert (code, err) == (0, "")
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["metrics"]["AP"] == 0 and numbers["errors"]["kinds"]["missed"]["count"] == 3
    assert numbers["calibration"] == {"error": None, "bins": []}
