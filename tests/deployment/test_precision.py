"""Detection with a trained model in bfloat16: what computes in it, who asks for it, and when it is refused.

The processor is simulated: oneDNN is asked for bfloat16, and computes in float32 where it cannot.
"""

from pathlib import Path

import numpy as np
import pytest

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.core.errors import UserError
from ppdet_lite.deployment.detect import TrainedNetwork
from ppdet_lite.deployment.detector import Detector, select_detector
from ppdet_lite.modeling.layers import Conv2D, Linear
from ppdet_lite.ops import dispatch
from tests.tiny_run import describe_tiny_run, tiny_checkpoint

REASON = "bfloat16 needs a CPU with AMX, and oneDNN, see ppdet-lite env-check; use float32"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return describe_tiny_run(tiny_checkpoint(tmp_path_factory.mktemp("run"), ["dog", "cat"], [9, 5], favorite=1), [])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The kind of each convolution and linear layer that has run on a processor with AMX, and its precision."""
    monkeypatch.setattr(dispatch, "multiplies_bfloat16", lambda: True)
    asked: list[tuple[str, bool]] = []
    for kind in (Conv2D, Linear):
        forward = kind.forward

        def watched(self, x, kind=kind, forward=forward):
            asked.append((kind.__name__, self.bfloat16))
            return forward(self, x)

        monkeypatch.setattr(kind, "forward", watched)
    return asked


IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


@pytest.mark.parametrize("way", ["argument", "config", "select_detector"])
def test_all_layers_compute_in_bfloat16(run: Path, asked: list[tuple[str, bool]], way: str) -> None:
    if way == "argument":
        detector = Detector.load(run, precision="bfloat16")
    elif way == "config":
        detector = Detector.load(describe_tiny_run(run, ["runtime.precision=bfloat16"]))
        describe_tiny_run(run, [])
    else:
        detector = select_detector(
            load_config(run / "config.yml", [f"weights={run}", "runtime.precision=bfloat16"]), None
        )
    found = detector(IMAGE)
    assert set(asked) == {("Conv2D", True), ("Linear", True)}
    asked.clear()
    expected = Detector.load(run, precision="float32")(IMAGE)
    assert set(asked) == {("Conv2D", False), ("Linear", False)}
    assert len(found.boxes) > 0 and abs(found.scores.max() - expected.scores.max()) < 0.02


def test_the_model_itself_stays_in_float32(run: Path, asked: list[tuple[str, bool]]) -> None:
    """An export compares with it, and training continues with it."""
    trained = load_trained(load_config(run / "config.yml", [f"weights={run}"]))
    network = Detector.from_trained(trained, "bfloat16").network
    assert isinstance(network, TrainedNetwork)
    sizes = np.float32([[64, 96]])
    network(np.zeros((1, 3, 64, 96), np.float32), sizes, np.ones((1, 2), np.float32))
    assert asked and all(bfloat16 for _, bfloat16 in asked)
    assert not any(layer.bfloat16 for layer in trained.model.sublayers() if isinstance(layer, Conv2D | Linear))
    assert Detector.from_trained(trained).network.precision == "float32"


def test_without_amx_bfloat16_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "multiplies_bfloat16", lambda: False)
    with pytest.raises(UserError) as error:
        Detector.load(run, precision="bfloat16")
    assert str(error.value) == f"command line: runtime.precision: {REASON}"
    with pytest.raises(UserError, match="use float32"):
        select_detector(load_config(run / "config.yml", [f"weights={run}", "runtime.precision=bfloat16"]), None)


def test_an_exported_model_has_its_own_precision(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(UserError, match="exported models have their own precision; load the trained run for bfloat16"):
        Detector.load(tmp_path, precision="bfloat16")
