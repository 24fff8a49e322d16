"""Errors of one line for files that are not ONNX, are from another program, or cannot be run."""

import sys
from pathlib import Path

import pytest
from onnx import TensorProto

from ppdet_lite.core.errors import UserError
from ppdet_lite.deployment.description import SECTION
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.deployment.onnx_predictor import OnnxPredictor
from tests.onnx_files import described, other_programs_file


def told(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        Detector.load(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no graph at all", bytes(1000)])
def test_a_file_that_is_not_onnx(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert "not an ONNX file, or damaged" in told(tmp_path / "model.onnx")


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    whole = other_programs_file(tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[:-20])
    assert "not an ONNX file, or damaged" in told(tmp_path / "model.onnx")


def test_a_file_of_another_program(tmp_path: Path) -> None:
    path = other_programs_file(tmp_path / "model.onnx", author="somebody")
    assert "an ONNX file of another program; write one with ppdet-lite export-model" in told(path)


def test_a_damaged_description(tmp_path: Path) -> None:
    path = other_programs_file(tmp_path / "model.onnx", **{SECTION: described(["cat"])[:-10]})
    assert "its description is damaged" in told(path)


def test_an_operator_that_onnx_runtime_does_not_have(tmp_path: Path) -> None:
    """Convolution in float64 stands for an operator of a later version."""
    path = other_programs_file(tmp_path / "model.onnx", "Conv", TensorProto.DOUBLE)
    assert "is too old for this file" in told(path) and "Conv" in told(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.onnx: no such file"):
        OnnxPredictor(tmp_path / "absent.onnx")


def test_without_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails as if it were not installed
    path = other_programs_file(tmp_path / "model.onnx")
    assert "ONNX files need onnxruntime: pip install onnxruntime" in told(path)


def test_the_description_is_read(tmp_path: Path) -> None:
    path = other_programs_file(tmp_path / "model.onnx", **{SECTION: described(["naïve", "cat"])})
    assert OnnxPredictor(path).description.class_names == ["naïve", "cat"]
