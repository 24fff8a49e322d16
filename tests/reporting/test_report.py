"""The files of a report, as tools/eval.py writes them."""

import base64
import csv
import json
import logging
import re
import runpy
import sys
from pathlib import Path

import pytest

from ppdet_lite.data.annotations.mixed import MixedDataset
from ppdet_lite.evaluation.coco_metric import score_file
from ppdet_lite.reporting.page import SECTIONS
from ppdet_lite.reporting.report import write_report
from tests.tiny_run import tiny_config, tiny_dataset, write_annotations

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
        return code, capsys.readouterr().err, tmp_path / "report"

    yield call
    root.handlers[:], root.level, root.propagate = before


def test_numbers_are_written_as_json_and_csv(report, tmp_path):
    detections = [
        {"image_id": 7, "category_id": 5, "bbox": [5, 10, 30, 40], "score": 0.9},
        {"image_id": 7, "category_id": 9, "bbox": [5, 10, 30, 40], "score": 0.6},
        {"image_id": 12, "category_id": 9, "bbox": [5, 10, 30, 40], "score": 0.3},
    ]
    code, err, folder = report(detections, "--report", str(tmp_path / "report"), "--score", "0.25")
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
    assert code == 2 and "--score is a number from 0 to 1 and requires --report" in err


def test_a_report_of_nothing_found(report, tmp_path):
    code, err, folder = report([], "--report", str(tmp_path / "report"))
    assert (code, err) == (0, "")
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers["metrics"]["AP"] == 0 and numbers["errors"]["kinds"]["missed"]["count"] == 3
    assert numbers["calibration"] == {"error": None, "bins": []}


def test_the_page_is_self_contained(report, tmp_path):
    """All sections, no external resources, escaped names, both galleries with images, sortable tables."""
    write_annotations(tmp_path / "val.json", {5: "<b>cat</b>", 9: "dog"})
    detections = [
        {"image_id": 7, "category_id": 5, "bbox": [5, 10, 30, 40], "score": 0.9},
        {"image_id": 7, "category_id": 9, "bbox": [5, 10, 30, 40], "score": 0.6},
    ]
    code, err, folder = report(detections, "--report", str(tmp_path / "report"))
    assert (code, err) == (0, "")
    page = (folder / "report.html").read_text(encoding="utf-8")
    sections = re.findall(r'<section id="([a-z-]+)"', page)
    assert sections == [name for name in SECTIONS if name not in ("explanation", "training")]
    assert re.findall(r'href="#([a-z-]+)"', page) == sections
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(address.startswith(("data:image/", "#")) for address in addresses) and "http" not in page
    # a false positive, two misses, and the two images that have them
    assert sum(address.startswith("data:image/jpeg") for address in addresses) == 1 + 2 + 2
    links = dict(re.findall(r'<a href="#([a-z0-9-]+)">([a-z0-9]+\.png)</a>', page))
    assert links == {"worst-images-1": "7.png", "worst-images-2": "3.png"}
    assert all(f'<figure id="{link}">' in page for link in links)
    assert "<b>cat" not in page and "&lt;b&gt;cat&lt;/b&gt;" in page
    assert page.count('class="sortable"') == 2
    curves = list(csv.DictReader((folder / "curves.csv").open(encoding="utf-8")))
    assert [row["class"] for row in curves] == ["<b>cat</b>"] * 101 + ["dog"] * 101
    assert {row["precision"] for row in curves[:101]} == {"1.0"} and {row["score"] for row in curves[:101]} == {"0.9"}
    assert {(row["precision"], row["score"]) for row in curves[101:]} == {("0.0", "")}


def test_the_page_of_ap_0_explains_it_and_reports_unreadable_images(report, tmp_path):
    (tmp_path / "images" / "7.png").unlink()
    detections = [{"image_id": 7, "category_id": 9, "bbox": [5, 10, 30, 40], "score": 0.9}]
    code, err, folder = report(detections, "--report", str(tmp_path / "report"))
    assert (code, err) == (0, "")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert '<section id="explanation"' in page and "Classes are mixed up" in page
    assert page.count("cannot read image") == 3  # one line for each gallery instead of a caption for each picture
    assert "Pictures of 1 of these 1 are missing, the first: cannot read image" in page
    assert "Pictures of 2 of these 3 are missing, the first: cannot read image" in page


def test_the_two_meanings_of_missed(report, tmp_path):
    """A detection with a low score: the object is missed at the chosen score, but not at any score."""
    objects = json.loads((tmp_path / "val.json").read_text())["annotations"]
    detections = [{key: item[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.3} for item in objects]
    _, _, folder = report(detections, "--report", str(tmp_path / "report"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<th>missed at 0.5</th>") == 2 and "<th>missed</th>" not in page
    row = page.index('<td class="words">missed at any score<br>')
    assert page[row : page.index("</tr>", row)].count("<td>0</td>") == 1
    assert json.loads((folder / "report.json").read_text())["all"]["at_score"]["missed"] == len(objects)


@pytest.mark.parametrize("weights", [None, "checkpoints/best", "", "export"])
def test_the_losses_of_the_run(tmp_path, weights):
    """curves.png of the run that contains the weights, or else the results; another run's are not shown."""
    dataset, run = tiny_dataset(tmp_path), tmp_path / "output/run"
    (run / "checkpoints/best").mkdir(parents=True)
    (run / "export").mkdir()
    (tmp_path / "bbox.json").write_text("[]")
    (run / "curves.png").write_bytes(b"the run's")
    results = tmp_path / "bbox.json"
    if weights is None:
        results = run / "bbox.json"
        results.write_text("[]")
    else:
        (tmp_path / "curves.png").write_bytes(b"another run's")
    facts = {} if weights is None else {"weights": str(run / weights)}
    write_report(tmp_path / "report", dataset, results, score_file(dataset, results), facts=facts)
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert re.findall(r"data:image/png;base64,([^\"]+)", page) == [base64.b64encode(b"the run's").decode()]
    assert '<section id="training">' in page and '<a href="#training">' in page


def test_published_weights_have_no_losses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curves.png").write_bytes(b"of anything")
    (tmp_path / "bbox.json").write_text("[]")
    dataset, results = tiny_dataset(tmp_path), tmp_path / "bbox.json"
    write_report(tmp_path / "report", dataset, results, score_file(dataset, results), facts={"weights": "zoo:name"})
    assert "data:image/png" not in (tmp_path / "report/report.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_refused(report, tmp_path):
    (tmp_path / "file").write_text("")
    code, err, _ = report([], "--report", str(tmp_path / "file" / "report"))
    assert code == 2 and "report.json: cannot be written" in err


def test_mixed_datasets_have_a_report_too(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    dataset = MixedDataset([tiny_dataset(tmp_path / name) for name in "ab"])
    found = [
        {"image_id": record["image_id"], "category_id": record["category_id"], "bbox": record["bbox"], "score": 0.9}
        for record in dataset.ground_truth()["annotations"]
    ]
    (tmp_path / "bbox.json").write_text(json.dumps(found))
    metrics = score_file(dataset, tmp_path / "bbox.json")
    report_content = write_report(tmp_path / "report", dataset, tmp_path / "bbox.json", metrics)
    assert report_content["all"]["at_score"]["true_positives"] == 6 and report_content["errors"][
        "AP50"
    ] == pytest.approx(1)
    images = list(csv.DictReader((tmp_path / "report/images.csv").open(encoding="utf-8")))
    assert [row["file"] for row in images] == [f"{tmp_path}/{a}/images/{i}.png" for a in "ab" for i in (7, 3, 12)]
    page = (tmp_path / "report/report.html").read_text(encoding="utf-8")
    assert "<h1>Detection report: val.json + val.json</h1>" in page and "There are none." in page
