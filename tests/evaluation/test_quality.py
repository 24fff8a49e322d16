"""The measure of quality that decides on int8: hand-computed agreement, and when it is used instead of AP."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.deployment.detector import Detections
from ppdet_lite.deployment.export import calibration_images
from ppdet_lite.evaluation import quality
from ppdet_lite.evaluation.quality import agreement, quality_measure

CONFIG = Path(__file__).resolve().parents[2] / "configs/quickstart/shapes_r18_fpn.yml"
SQUARE = [0, 0, 10, 10]


def detector(*rows: tuple[list[float], float, int]) -> Any:
    """A detector that finds the same boxes, scores and classes in every image."""
    boxes = np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4)
    scores, classes = np.array([score for _, score, _ in rows]), np.array([k for _, _, k in rows], int)
    return lambda path: Detections(boxes, scores, classes, [str(k) for k in classes])


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ([(SQUARE, 0.9, 0)], 1.0),
        ([([0, 0, 10, 6], 0.9, 0)], 1.0),  # an IoU of 0.6
        ([([0, 0, 10, 4], 0.9, 0)], 0.0),  # 0.4
        ([(SQUARE, 0.9, 1)], 0.0),  # another class
        ([(SQUARE, 0.41, 0)], 1.0),  # below 0.5, so it needs no partner itself
        ([(SQUARE, 0.39, 0)], 0.0),
        ([(SQUARE, 0.9, 0), ([50, 50, 60, 60], 0.6, 0)], 2 / 3),  # of three detections, one has no partner
        ([(SQUARE, 0.9, 0), ([50, 50, 60, 60], 0.49, 0)], 1.0),
        ([], 0.0),
    ],
)
def test_agreement(other: list[Any], expected: float) -> None:
    assert agreement(detector((SQUARE, 0.8, 0)), [Path("a"), Path("b")])(detector(*other)) == pytest.approx(expected)


def test_agreement_where_neither_detects_anything(caplog: pytest.LogCaptureFixture) -> None:
    assert agreement(detector((SQUARE, 0.5, 0)), [Path("a")])(detector((SQUARE, 0.5, 0))) == 1.0
    assert not caplog.text
    assert agreement(detector(), [Path("a")])(detector((SQUARE, 0.3, 0))) == 1.0
    assert "no detection of the float model scores 0.5: agreement says little" in caplog.text


@pytest.mark.parametrize(("boxes", "name"), [([0, 3], "AP"), ([0, 0], "agreement")])
def test_without_objects_there_is_no_ap(
    boxes: list[int], name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The AP is -1 then, of any detector."""
    dataset = SimpleNamespace(file="val.json", statistics=lambda: SimpleNamespace(boxes=np.array(boxes)))
    monkeypatch.setattr(quality.setup, "build_dataset", lambda config, split, names: dataset)
    monkeypatch.setattr(quality.setup, "check_images", lambda config, split, dataset: None)
    assert quality_measure(load_config(CONFIG), SimpleNamespace(class_names=["a"]), [])[0] == name
    assert ("val.json: no objects are annotated" in caplog.text) == (name == "agreement")


def test_ap_on_the_validation_data_else_agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    augmented = ["eval.flip=true", "eval.short_sides=[64, 96]", "eval.loss=true"]
    config, reference = load_config(CONFIG, augmented), SimpleNamespace(class_names=["a"])
    dataset = SimpleNamespace(statistics=lambda: SimpleNamespace(boxes=np.array([1])))
    monkeypatch.setattr(quality.setup, "build_dataset", lambda config, split, names: dataset)
    monkeypatch.setattr(quality.setup, "check_images", lambda config, split, dataset: None)
    seen = []
    monkeypatch.setattr(quality, "evaluate", lambda *arguments, options: seen.append(options) or {"AP": 0.25})
    name, measure = quality_measure(config, reference, [])
    assert (name, measure("a detector")) == ("AP", 0.25)
    assert (seen[0].flip, seen[0].short_sides, seen[0].loss) == (False, None, False)  # exported models have neither
    monkeypatch.undo()
    missing = load_config(CONFIG, [f"data.val.annotations={tmp_path / 'absent.json'}"])
    assert quality_measure(missing, reference, [])[0] == "agreement"
    assert "AP is not measured" in caplog.text and "absent.json" in caplog.text


def test_without_images_to_calibrate_on(tmp_path: Path) -> None:
    config = load_config(CONFIG, [f"data.train.annotations={tmp_path / 'absent.json'}"])
    with pytest.raises(
        UserError, match=r"no images to calibrate int8 on: .*absent\.json.*choose other images with --cal"
    ):
        calibration_images(config, None, 100)
    for name in "abcde":
        (tmp_path / f"{name}.png").touch()
    assert [path.stem for path in calibration_images(config, tmp_path, 3)] == ["a", "c", "e"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--int8", "--int8 requires --format onnx, --calibrate at least 1 and --int8-loss from 0 to 1"),
        ("--format both --int8", "--int8 requires --format onnx"),
        ("--format onnx --int8 --calibrate 0", "--calibrate at least 1"),
        ("--format onnx --int8 --int8-loss 2", "--int8-loss from 0 to 1"),
        ("--format onnx --calibrate 5", "--calibrate, --calibration-images and --int8-loss require --int8"),
    ],
)
def test_options_that_do_not_fit(
    options: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from ppdet_lite.commands import export_model

    monkeypatch.setattr("sys.argv", ["export-model", "-c", str(CONFIG), "--output", "nowhere", *options.split()])
    with pytest.raises(SystemExit, match="2"):
        export_model.main()
    assert message in capsys.readouterr().err
