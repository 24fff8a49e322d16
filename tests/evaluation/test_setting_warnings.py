"""Refusals and warnings about what the COCO metric cannot measure, and about sizes that were not trained."""

import json
import runpy
import sys
from pathlib import Path
from typing import get_args

import pytest

from ppdet_lite import Detector
from ppdet_lite.assembly.recipe import BestMetric
from ppdet_lite.assembly.run_files import describe_checkpoint
from ppdet_lite.assembly.setup import build_dataset, build_model, check_training_data, load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.evaluation_checks import SUMMARY, measurable_metrics
from ppdet_lite.evaluation.coco_metric import score_file
from ppdet_lite.storage.checkpoint import save_checkpoint
from tests.tiny_run import CATEGORIES, describe_tiny_run, tiny_checkpoint, tiny_config, tiny_dataset, write_annotations

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tool(monkeypatch, capsys, tmp_path):
    """Run a tool with tiny.yml in this process; returns (exit code, stdout, stderr)."""

    def call(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, "-c", str(tmp_path / "tiny.yml"), *map(str, arguments)])
        code = 0
        try:
            runpy.run_path(str(ROOT / "tools" / name), run_name="__main__")
        except SystemExit as error:
            code = error.code
        return (code, *capsys.readouterr())

    return call


def annotate(path, areas, crowd=()):
    """Write objects of these annotated areas; those at the positions in `crowd` are crowd regions."""
    write_annotations(path, xywh={7: [(5, 10, 30, 40, 5) for _ in areas], 3: [], 12: []})
    content = json.loads(path.read_text())
    for i, (record, area) in enumerate(zip(content["annotations"], areas, strict=True)):
        record |= {"area": area, "iscrowd": int(i in crowd)}
    path.write_text(json.dumps(content))


AREAS = [[1023.9], [1024], [1024.1], [9215.9], [9216], [9216.1], [1e11], [5, 5000], [5, 1e5], [5000, 1e5, 7]]


@pytest.mark.parametrize("areas", [*AREAS, []], ids=str)
def test_measurable_metrics_are_those_that_pycocotools_measures(tmp_path, areas):
    tiny_dataset(tmp_path)
    annotate(tmp_path / "val.json", [*areas, 5, 2000, 20000], crowd=range(len(areas), len(areas) + 3))
    (tmp_path / "bbox.json").write_text("[]")
    dataset = CocoDataset(str(tmp_path / "images"), str(tmp_path / "val.json"))
    metrics = score_file(dataset, tmp_path / "bbox.json")
    assert measurable_metrics(dataset) == [name for name in SUMMARY if metrics[name] != -1]


@pytest.mark.parametrize("metric", get_args(BestMetric))
def test_a_best_metric_that_the_data_do_not_have(tmp_path, metric):
    """The data have small and medium objects."""
    config = load_config(tiny_config(tmp_path), [f"train.best_metric={metric}", "eval.loss=true"])
    sets = build_dataset(config, "train"), build_dataset(config, "val")
    if metric not in ("APl", "ARl"):
        return check_training_data(config, *sets)
    with pytest.raises(UserError) as refused:
        check_training_data(config, *sets)
    assert str(refused.value) == (
        f"command line: train.best_metric: {metric} cannot be measured: {tmp_path}/val.json has no "
        "large object other than crowd regions; choose AP, AP50, AP75, APs, APm, AR1, AR10, AR100, ARs, ARm"
    )


@pytest.mark.parametrize(
    ("metric", "areas", "reason", "choice"),
    [
        ("APs", [5000], "no small object", "AP, AP50, AP75, APm, AR1, AR10, AR100, ARm"),
        ("ARm", [5, 1e5], "no medium object", "AP, AP50, AP75, APs, APl, AR1, AR10, AR100, ARs, ARl"),
        ("AP", [], "no object", "loss, with eval.loss: true, or train.evaluate_every: null"),
        ("APl", [], "no object", "loss, with eval.loss: true, or train.evaluate_every: null"),
    ],
)
def test_training_and_data_check_refuse_it_at_the_start(tmp_path, tool, metric, areas, reason, choice):
    tiny_config(tmp_path)
    annotate(tmp_path / "val.json", areas)
    code, _, err = tool("train.py", "-o", f"train.best_metric={metric}")
    line = f"command line: train.best_metric: {metric} cannot be measured: {tmp_path}/val.json has {reason} other than"
    assert (code, err) == (2, f"error: {line} crowd regions; choose {choice}\n")
    assert not list((tmp_path / "output").glob("*/*"))
    code, _, err = tool("check_data.py", "-o", f"train.best_metric={metric}")
    assert code == 2 and "training would refuse" in err and "cannot be measured" in err
    config = load_config(tmp_path / "tiny.yml", [f"train.best_metric={metric}", "train.evaluate_every=null"])
    check_training_data(config, build_dataset(config, "train"), build_dataset(config, "val"))


def run_with_config(folder, *overrides):
    """Save a random model as a run's best checkpoint, with the config of its training; return the run's folder."""
    run = tiny_checkpoint(folder, list(CATEGORIES.values()), list(CATEGORIES))
    config = load_config(folder / "tiny.yml", overrides)
    model = build_model(config)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    meta = describe_checkpoint(config, list(CATEGORIES.values()), list(CATEGORIES))
    save_checkpoint(run / "checkpoints" / "best", {"model": arrays}, meta)
    return describe_tiny_run(run, overrides)


@pytest.mark.parametrize(
    ("trained", "evaluated", "expected"),
    [
        ([], [], None),
        ([], ["data.preprocess.stride=64"], None),
        (["data.augment.short_sides=[48, 96]"], ["data.preprocess.short_side=80"], None),
        (["data.augment.short_sides=[48, 80]"], ["data.preprocess.short_side=96"], ("48 to 80", "128", "96", "128")),
        ([], ["data.preprocess.short_side=256", "data.preprocess.long_side=512"], ("64", "128", "256", "512")),
        ([], ["data.preprocess.short_side=32"], ("64", "128", "32", "128")),
        ([], ["data.preprocess.long_side=80"], ("64", "128", "64", "80")),
        ([], ["data.preprocess.long_side=2000"], None),  # no image of up to 16:9 changes its size
        (
            ["data.augment.scale_jitter={size: [64, 128], scales: [0.5, 2]}"],
            ["data.preprocess.short_side=100"],
            None,
        ),
        (
            ["data.augment.scale_jitter={size: [64, 128], scales: [0.5, 2]}"],
            ["data.preprocess.short_side=200", "data.preprocess.long_side=400"],
            ("32 to 128", "64 to 256", "200", "400"),
        ),
    ],
)
def test_evaluation_at_another_size_than_trained(tmp_path, tool, trained, evaluated, expected):
    run = run_with_config(tmp_path, *trained)
    code, out, err = tool("eval.py", "-o", f"weights={run}", *evaluated)
    assert (code, err) == (0, "")
    lines = [line for line in out.splitlines() if "was trained at" in line]
    assert len(lines) == (expected is not None)
    if expected is not None:
        then, now = "short_side {}, long_side {}".format(*expected), "short_side {}, long_side {}".format(*expected[2:])
        assert lines[0].endswith(f" was trained at {then}, but data.preprocess resizes images to {now}")
        assert "warning" in lines[0].lower() and f"{run}/checkpoints/best" in lines[0]


def test_pixels_that_are_converted_otherwise_than_in_training(tmp_path, tool):
    run = run_with_config(tmp_path)
    _, out, _ = tool(
        "eval.py", "-o", f"weights={run}", "data.preprocess.channels=bgr", "data.preprocess.mean=[0, 0, 0]"
    )
    (line,) = (line for line in out.splitlines() if "data.preprocess differs from the training of" in line)
    assert line.endswith(": mean [0.0, 0.0, 0.0] instead of [0.485, 0.456, 0.406], channels bgr instead of rgb")


def test_a_detector_whose_run_has_another_size_now(tmp_path, caplog):
    run = run_with_config(tmp_path)
    Detector.load(run)
    assert "trained at" not in caplog.text
    config = load_config(tmp_path / "tiny.yml", ["data.preprocess.short_side=16"])
    (run / "config.yml").write_text(config.dump())
    Detector.load(run)
    assert (
        "was trained at short_side 64, long_side 128, but data.preprocess resizes images to short_side 16"
        in caplog.text
    )


def test_a_checkpoint_without_a_config_is_loaded_without_a_word(tmp_path, caplog):
    run = describe_tiny_run(tiny_checkpoint(tmp_path, list(CATEGORIES.values()), list(CATEGORIES)))
    Detector.load(run)
    assert "trained" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], None),
        (["model.postprocess={max_detections: 100}"], None),
        (
            ["model.postprocess={max_detections: 101}"],
            "model.postprocess.max_detections is 101, but the COCO metric counts only the 100 best detections",
        ),
        (["eval.short_sides=[48, 64]"], None),
        (["eval.short_sides=[200, 256]"], "training resizes short sides to 64..64, but eval.short_sides are 200..256"),
        (["eval.short_sides=[100]", "data.augment.short_sides=[64, 120]"], None),
    ],
)
def test_settings_of_the_evaluation(tmp_path, tool, overrides, line):
    run = run_with_config(tmp_path)
    for name, arguments in (("eval.py", [f"weights={run}"]), ("train.py", ["train.rehearse=false"])):
        code, out, err = tool(name, "-o", *arguments, *overrides)
        assert (code, err) == (0, "")
        warnings = [text for text in out.splitlines() if "max_detections is" in text or "eval.short_sides are" in text]
        assert len(warnings) == (line is not None) and all(line in text for text in warnings)


def test_images_with_more_than_100_objects_of_a_class(tmp_path, tool):
    run = run_with_config(tmp_path)
    objects = [(i / 10, 10, 30, 40, 5) for i in range(190)]
    write_annotations(tmp_path / "val.json", xywh={7: objects, 3: [(10, 20, 40, 50, 5)], 12: []})
    truth = json.loads((tmp_path / "val.json").read_text())["annotations"]
    perfect = [{key: item[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for item in truth]
    (tmp_path / "bbox.json").write_text(json.dumps(perfect))
    text = "1 of 3 images has more than 100 objects of a class: COCO counts 100 detections of each: AP stays below 1"
    calls = {
        "eval.py": [
            ["-o", f"weights={run}"],
            ["--results", tmp_path / "bbox.json"],
            ["--compare", tmp_path / "bbox.json", tmp_path / "bbox.json"],
        ],
        "train.py": [["-o", "train.rehearse=false"]],
        "check_data.py": [[]],
    }
    for name, all_arguments in calls.items():
        for arguments in all_arguments:
            code, out, err = tool(name, *arguments)
            assert (code, err) == (0, "") and out.count(text) == 1, (name, arguments, out)
    assert json.loads((tmp_path / "metrics.json").read_text())["AP"] == pytest.approx(101 / 191, abs=0.01)
