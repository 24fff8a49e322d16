"""The benchmark tool's numbers and its JSON."""

import importlib.util
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.benchmarks import loader, model, operators
from ppdet_lite.benchmarks.loader import bench_data
from ppdet_lite.benchmarks.model import PHASES, bench_infer, bench_train, format_report
from ppdet_lite.config.checked_config import Config
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.data.synthetic.shapes import generate
from ppdet_lite.deployment import onnx_export
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from tests.onnx_packages import needs_onnx_export
from tests.tiny_run import WITHOUT_STAGE_5

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/quickstart/shapes_r18_fpn.yml"
SMALL = [*WITHOUT_STAGE_5, "model.neck.out_channels=32", "model.box_head.width=64", "model.rpn.post_nms_test=20"]


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(CONFIG, SMALL)


def is_summary(value: dict[str, float]) -> bool:
    return list(value) == ["median", "min", "max"] and 0 < value["min"] <= value["median"] <= value["max"]


def test_train(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(np.cumsum([1, 2, 3, 4, 10] * 4).tolist())  # the last: to the beginning of the next round
    monkeypatch.setattr(model, "_now", lambda: float(next(ticks)))
    report = bench_train(config, (64, 96), batch=2, iterations=2, classes=3)
    assert [report[f"{phase}_seconds"]["median"] for phase in PHASES] == [2, 3, 4, 10]
    assert report["step_seconds"] == {"median": 19, "min": 19, "max": 19}
    assert report["size"] == [64, 96] and report["batch"] == 2 and report["iterations"] == 2
    assert report["peak_rss_mb"] > 100


def test_train_in_real_seconds(config: Config) -> None:
    report = bench_train(config, (64, 64), batch=1, iterations=1, classes=3)
    assert is_summary(report["step_seconds"])
    parts = [report[f"{phase}_seconds"]["median"] for phase in PHASES]
    assert sum(parts) == pytest.approx(report["step_seconds"]["median"], rel=1e-6)
    assert report["backward_seconds"]["median"] > report["data_seconds"]["median"]


@needs_onnx_export
def test_infer(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "PAUSE", 0.0)
    report = bench_infer(config, (64, 96), batch=1, iterations=3, classes=3)
    trained, exported, onnx = (report[name]["step_seconds"] for name in ("training_side", "exported", "onnx"))
    assert is_summary(trained) and is_summary(exported) and is_summary(onnx)
    assert report["ratio"] == pytest.approx(exported["median"] / trained["median"])
    assert report["onnx_ratio"] == pytest.approx(onnx["median"] / trained["median"])
    openvino = importlib.util.find_spec("openvino") is not None
    assert ("openvino_ratio" in report) == ("openvino" in report) == openvino
    assert report["device"] == "cpu"


def test_infer_without_onnx(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def predictors(network: FasterRCNN, preprocess: Preprocess, onnx: bool) -> dict[str, Callable[..., None]]:
        assert not onnx
        return {"exported": lambda *_: None}

    monkeypatch.setattr(model, "PAUSE", 0.0)
    monkeypatch.setattr(onnx_export, "PACKAGES", ("no_such_package",))
    monkeypatch.setattr(model, "export_predictors", predictors)  # test_infer measures a real one
    report = bench_infer(config, (64, 64), batch=1, iterations=1, classes=3)
    assert "needs no_such_package" in report["onnx"] and "onnx_ratio" not in report
    assert is_summary(report["exported"]["step_seconds"])
    assert "needs no_such_package" in format_report(report)


def test_data(tmp_path: Path) -> None:
    generate(tmp_path / "shapes", train=4, val=1, size=96)
    overrides = [
        "data.loader.batch_size=2",
        f"data.train.images={tmp_path / 'shapes/train'}",
        f"data.train.annotations={tmp_path / 'shapes/annotations/instances_train.json'}",
    ]
    report = bench_data(load_config(CONFIG, overrides), iterations=3, threads=(0, 2))
    assert list(report["images_per_second"]) == ["0", "2"]
    assert min(report["images_per_second"].values()) > 0
    assert report["batch"] == 2


def test_data_compared_with_paddles_dataloader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without processes: threads of earlier tests make forking unsafe."""
    monkeypatch.setattr(loader, "ROUNDS", 1)
    real = loader.io.DataLoader

    def alone(*args: Any, **options: Any) -> Any:
        return real(*args, **options | {"num_workers": 0, "timeout": 0})

    monkeypatch.setattr(loader.io, "DataLoader", alone)
    generate(tmp_path, train=4, val=1, size=96)
    folders = [
        f"data.train.images={tmp_path}/train",
        f"data.train.annotations={tmp_path}/annotations/instances_train.json",
    ]
    report = bench_data(load_config(CONFIG, [*folders, "data.loader.batch_size=2"]), 2, threads=(), workers=1)
    rates = report["as_tensors"]
    assert rates["ratio"] == pytest.approx(rates["threads"] / rates["processes"])
    assert rates["threads_processor_ms"] > 0 and rates["processes_processor_ms"] > 0


def test_the_tool_ends_with_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    arguments = [
        "train",
        "-c",
        str(CONFIG),
        "-o",
        *SMALL,
        "--size",
        "64x96",
        "--iters",
        "1",
        "--classes",
        "4",
        "--json",
    ]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    runpy.run_path(str(ROOT / "tools/benchmark.py"), run_name="__main__")
    *lines, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert is_summary(report["step_seconds"]) and report["peak_rss_mb"] > 0 and report["size"] == [64, 96]
    assert [line.split()[0] for line in lines[-11:-6]] == ["step", *PHASES]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "--size", "320"], "--size: invalid height_x_width value: '320'"),
        (["infer", "--size", "0x320"], "--size: invalid height_x_width value: '0x320'"),
        (["data", "--iters", "0"], "--iters: invalid positive value: '0'"),
        (["sleep"], "invalid choice: 'sleep'"),
    ],
)
def test_bad_arguments(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "-c", str(CONFIG)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools/benchmark.py"), run_name="__main__")
    assert stop.value.code == 2
    assert text in capsys.readouterr().err


def test_ops_needs_no_config(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(operators, "run", lambda repeats: {"conv": {"ratio": 1.5 * repeats}})
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "ops", "--iters", "2", "--json"])
    runpy.run_path(str(ROOT / "tools/benchmark.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "conv",
        "  ratio                      3",
        '{"conv": {"ratio": 3.0}}',
    ]


def test_format() -> None:
    report = {
        "step_seconds": {"median": 0.5, "max": 1.25},
        "exported": {"a_seconds": {"median": 0.001}},
        "ratio": 0.5123,
    }
    assert format_report(report).splitlines() == [
        "step                       median 500.0  max 1250.0  ms",
        "exported",
        "  a                          median 1.0  ms",
        "ratio                      0.512",
    ]


def test_the_clock_synchronizes_with_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.device, "synchronize", lambda: waits.append(1))
    model._now()
    assert waits == [1]
