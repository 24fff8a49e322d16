"""A step that is not finite: what it leaves, what is found in it, and that it can be taken again."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.autograd import PyLayer

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core import log
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.optimization.optimizer import SGD
from ppdet_lite.storage import checkpoint, files
from ppdet_lite.storage.checkpoint import save_checkpoint
from ppdet_lite.training.diagnosis import StepInput, diagnose
from ppdet_lite.training.loop import train
from ppdet_lite.training.nan_dump import replay
from ppdet_lite.training.step import train_step
from tests import tiny
from tests.tiny_run import QUICKSTART, small_shapes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def diverging(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides under which the second step, of two batches, is not finite."""
    return [
        *small_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=2),
        "train={length: 4 iterations, checkpoint_every: null, log_every: 1, accumulate: 2}",
        "data.loader.threads=0",
        "optimizer.base_lr=1.0e+8",
    ]


@pytest.fixture(scope="module")
def dump(diverging: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("run")
    with pytest.raises(RunFailed) as caught:
        train(load_config(QUICKSTART, diverging), run)
    return run / "nan/iter_00000002", str(caught.value)


def step_of(*batches: dict[str, Any]) -> StepInput:
    return StepInput(batches or [tiny.batch()], 0, range(max(len(batches), 1)))


def test_a_failed_step_is_kept_and_told(dump: tuple[Path, str]) -> None:
    folder, error = dump
    assert {path.name for path in folder.iterdir()} == {
        *("model.safetensors", "batch.safetensors", "checkpoint.json", "config.yml", "report.txt"),
    }
    assert "is not finite" in error and "in iteration 2; first not finite: " in error
    assert error.endswith(f"ppdet-lite train --replay {folder}")
    report = (folder / "report.txt").read_text()
    assert "losses of batch 2: loss_rpn_objectness" in report and "gradient norms: backbone" in report
    assert error in (folder.parents[1] / "train.log").read_text()


def test_the_tool_takes_it_again(dump: tuple[Path, str]) -> None:
    folder, _ = dump
    command = [sys.executable, str(ROOT / "tools/train.py"), "--replay", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    first, *rest = (folder / "report.txt").read_text().splitlines()[1:-1]
    assert done.stderr == f"error: iteration 2 fails again: {first}\n"
    assert all(line in done.stdout for line in rest)
    unused = subprocess.run([*command, "-o", "optimizer.base_lr=1e-9"], capture_output=True, text=True)
    assert unused.returncode == 2
    assert "-o optimizer.base_lr=1e-9 has no effect: --replay repeats a step up to its gradients" in unused.stderr


def test_a_step_that_is_finite_again_is_told(
    dump: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """As when it was the device's fault: here its weights are replaced by new ones."""
    kept, meta = checkpoint.load_checkpoint(dump[0])
    config = load_config(dump[0] / "config.yml")
    rng = np.random.default_rng(0)
    weights = {
        name: np.ones_like(array) if array.ndim < 2 else 0.01 * rng.standard_normal(array.shape).astype(np.float32)
        for name, array in kept["model"].items()
    }
    save_checkpoint(tmp_path / "dump", {"model": weights, "batch": kept["batch"]}, meta)
    log.configure()
    replay(config, tmp_path / "dump")
    assert "iteration 2 does not fail again: all losses and gradients are finite" in capsys.readouterr().out


def test_what_is_no_dump_is_refused(dump: tuple[Path, str], tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "other", {"model": {}}, {})
    config = load_config(dump[0] / "config.yml")
    with pytest.raises(UserError, match="has no group 'batch'"):
        replay(config, tmp_path / "other")
    with pytest.raises(UserError, match="no such checkpoint folder"):
        replay(config, tmp_path / "none")


@pytest.mark.parametrize("full", ["checkpoint", "report"])
def test_a_full_disk_does_not_hide_the_error(
    diverging: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if full == "checkpoint":
        monkeypatch.setattr(checkpoint, "_write", refuse)
    else:
        real = files.atomic_writer
        monkeypatch.setattr(files, "atomic_writer", lambda path: refuse() if path.name == "report.txt" else real(path))
    with pytest.raises(RunFailed, match=r"is not finite: .*; not saved for a replay: .*No space left on device"):
        train(load_config(QUICKSTART, diverging), tmp_path / "run")


def test_losses_and_norms_are_those_of_the_step() -> None:
    batches = [tiny.batch(0), tiny.batch(1)]
    model = tiny.detector(mimic={"rois": "both", "crop_size": 32})
    model.train()
    found = diagnose(model, StepInput(batches, 0, (5, 6)))
    assert found.first is None and found.is_finite
    for name, norm in found.gradient_norms.items():
        gradients = [p.grad for p in getattr(model, name).parameters() if p.grad is not None]
        expected = np.linalg.norm(np.concatenate([grad.numpy().ravel().astype(np.float64) for grad in gradients]))
        assert norm == pytest.approx(expected, rel=1e-3)  # Paddle sums millions of float32 one by one
    assert found.gradient_norms.keys() == {"backbone", "neck", "rpn", "box_head", "predictor", "mimic"}
    model.clear_gradients()
    step = train_step(model, SGD().build(model), batches, None, 0, (5, 6))
    assert step.losses == {name: sum(losses[name] for losses in found.losses) / 2 for name in found.losses[0]}
    whole = np.linalg.norm(list(found.gradient_norms.values()))
    assert step.metrics["gradient_norm"] == pytest.approx(whole, rel=1e-6)


def test_a_weight_comes_first() -> None:
    model = tiny.detector()
    model.rpn.objectness.weight.set_value(paddle.full_like(model.rpn.objectness.weight, float("nan")))
    assert diagnose(model, step_of()).first == "weight rpn.objectness.weight"


def test_then_the_images_and_boxes() -> None:
    batch = tiny.batch()
    batch["images"][1, 0, 3, 3] = np.inf
    assert diagnose(tiny.detector(), step_of(tiny.batch(1), batch)).first == "image 12 of batch 2"
    batch = tiny.batch()
    batch["targets"][0]["boxes"][1, 2] = np.nan
    assert diagnose(tiny.detector(), step_of(batch)).first == "box of image 11 of batch 1"


def test_then_the_layer_that_overflows() -> None:
    model = tiny.detector()
    huge = model.backbone.stem.conv
    huge.weight.set_value(paddle.full_like(huge.weight, 3e38))
    found = diagnose(model, step_of())
    assert found.first == "output of backbone.stem.conv (Conv2D)" and not found.is_finite


class Poison(PyLayer):
    """As it was forward, NaN backward."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor) -> paddle.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        return gradient * float("nan")


def test_then_the_layer_whose_gradient_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses are finite, and so is what does not lie behind it."""
    model = tiny.detector()
    real = model.predictor.forward
    monkeypatch.setattr(model.predictor, "forward", lambda x: real(Poison.apply(x)))
    found = diagnose(model, step_of())
    assert found.first.startswith("gradient at the output of box_head") and not found.is_finite
    assert np.isfinite(found.gradient_norms["predictor"]) and np.isfinite(found.gradient_norms["rpn"])
    assert all(np.isfinite(list(losses.values())).all() for losses in found.losses)
