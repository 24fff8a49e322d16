"""tools/eval.py and tools/infer.py as a user runs them, with a real but untrained model."""

import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_run import SIZES, tiny_checkpoint, write_annotations

ROOT = Path(__file__).resolve().parents[2]
SHUFFLED = {8: "dog", 31: "cat"}  # other ids than in training, in another order


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data, tiny.yml and a run whose model only detects its class 1, "cat"."""
    folder = tmp_path_factory.mktemp("place")
    tiny_checkpoint(folder, ["dog", "cat"], [9, 5], favorite=1)
    return folder


@pytest.fixture(autouse=True)
def logger():
    """Restore the package's logger after a tool."""
    root = logging.getLogger("ppdet_lite")
    before = (root.handlers[:], root.level, root.propagate)
    yield
    root.handlers[:], root.level, root.propagate = before


@pytest.fixture
def tool(monkeypatch, capsys, place):
    """Run a tool in this process with tiny.yml; returns (exit code, stdout, stderr)."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, "-c", str(place / "tiny.yml"), *map(str, arguments)])
        try:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
            code = 0
        except SystemExit as error:
            code = error.code
        return (code, *capsys.readouterr())

    return call


def test_eval_matches_classes_by_name_and_writes_into_the_runs_folder(place, tool):
    xywh = {7: [(5, 10, 30, 40, 31)], 3: [(10, 20, 40, 50, 8)], 12: []}
    write_annotations(place / "shuffled.json", SHUFFLED, xywh)
    overrides = [f"weights={place}/run", f"data.val.annotations={place}/shuffled.json"]
    code, out, err = tool("eval.py", "-o", *overrides, "--report", place / "told")
    assert (code, err) == (0, "")
    told = json.loads((place / "told" / "report.json").read_text())
    assert told["run"]["weights"].startswith(f"{place}/run") and (place / "told" / "report.html").is_file()
    folder = place / "output" / "tiny"
    assert sorted(path.name for path in folder.iterdir()) == ["bbox.json", "metrics.json"]
    results, metrics = (json.loads((folder / f"{name}.json").read_text()) for name in ("bbox", "metrics"))
    assert {record["category_id"] for record in results} == {31}  # "cat", class 1 of the model, 5 in training
    assert {record["image_id"] for record in results} == set(SIZES)
    assert list(metrics["per_class"]) == ["dog", "cat"] and metrics["per_class"]["dog"] == 0.0
    assert metrics["detections"] == len(results) and metrics["images"] == 3
    assert [(row["name"], row["AP"]) for row in told["classes"]] == list(metrics["per_class"].items())
    assert f"{len(results)} detections in 3 images" in out and "AP per class" in out


def test_eval_scores_a_results_file_without_a_model(place, tool, tmp_path):
    results = [{"image_id": 7, "category_id": 5, "bbox": [5, 10, 30, 40], "score": 0.9}]
    (tmp_path / "bbox.json").write_text(json.dumps(results))
    code, out, err = tool("eval.py", "--results", tmp_path / "bbox.json")
    assert (code, err) == (0, "") and "1 detections in 3 images" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["per_class"] == pytest.approx({"cat": 1.0, "dog": 0.0}) and metrics["AP"] == pytest.approx(0.5)


def test_infer_takes_the_names_from_the_checkpoint(place, tool):
    code, out, err = tool(
        "infer.py", "-o", f"weights={place}/run", "--input", place / "images", "--output", place / "drawn"
    )
    assert (code, err) == (0, "") and "images drawn: 3" in out
    found = json.loads((place / "drawn" / "detections.json").read_text())
    assert [(image["file"], image["height"], image["width"]) for image in found] == [
        ("12.png", 128, 100),
        ("3.png", 96, 64),
        ("7.png", 64, 96),
    ]
    for image in found:
        assert image["detections"]
        for item in image["detections"]:
            assert (item["class"], item["category_id"]) == ("cat", 5) and item["score"] >= 0.5
            x1, y1, x2, y2 = item["bbox"]
            assert 0 <= x1 < x2 <= image["width"] and 0 <= y1 < y2 <= image["height"]
    assert all((place / "drawn" / image["file"]).is_file() for image in found)


@pytest.mark.parametrize("name", ["eval.py", "infer.py"])
def test_print_config_prints_and_stops(name, tool, place):
    code, out, err = tool(name, "--print-config", "-o", "data.loader.threads=0")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "threads: 0 # command line" in lines
    assert any(line.startswith("neck: #") and "tiny.yml" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("eval.py", [], "error: no weights given; add -o weights="),
        ("eval.py", ["-o", "weights={place}/no"], "/no: no such weights"),
        ("eval.py", ["-o", "model.nek=1"], "nek"),
        ("eval.py", ["--results", "{place}/no.json"], "cannot read results"),
        (
            "eval.py",
            ["-o", "weights={place}/run", "data.val.annotations={place}/eel.json"],
            "missing in the file: dog",
        ),
        ("eval.py", ["-o", "weights={place}/run", "output={place}/tiny.yml"], "bbox.json: cannot be written"),
        ("infer.py", ["--input", "a"], "--input and --output are required"),
        ("eval.py", ["--model", "{place}/run", "-o", "model.postprocess.max_detections=9"], "has no effect"),
        ("infer.py", ["--input", "{place}/images", "--output", "{place}/o"], "error: no weights given"),
        ("infer.py", ["-o", "weights={place}/run", "--input", "{place}/no", "--output", "{place}/o"], "no such image"),
    ],
)
def test_user_errors_are_one_line_with_exit_code_2(name, arguments, message, tool, place):
    write_annotations(place / "eel.json", {5: "cat", 9: "eel"}, {7: [], 3: [], 12: []})
    before = sorted(place.rglob("*"))
    code, _, err = tool(name, *(argument.format(place=place) for argument in arguments))
    assert code == 2
    assert message in err and "Traceback" not in err
    assert err.startswith("usage:") or err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_from_another_folder_in_a_process_of_its_own(place, tmp_path):
    """Import order, exit code and output of Paddle, which runs within this process cannot show."""
    shutil.copy(place / "images" / "7.png", tmp_path / "7.png")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "bad.jpg").write_bytes(b"no image")
    command = [sys.executable, ROOT / "tools" / "infer.py", "-c", place / "tiny.yml", "-o", f"weights={place}/run"]
    command += ["--input", "images", "--output", "drawn"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 1
    assert done.stderr.startswith("error: skipped 1 of 1 images; the first: image images/bad.jpg cannot be dec")
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "drawn" / "detections.json").read_text() == "[]\n"
