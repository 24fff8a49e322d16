"""curves.png: what is in it, and that a picture ends no run."""

import statistics
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from ppdet_lite.assembly.setup import load_config
from ppdet_lite.core.errors import UserError
from ppdet_lite.training import curves
from ppdet_lite.training.curves import SMOOTHED_OVER, draw_curves
from ppdet_lite.training.loop import train
from ppdet_lite.training.metrics_file import read_metrics
from tests.tiny_run import QUICKSTART, small_shapes

ROWS = [
    {"iteration": 2, "lr": 0.1, "loss_cls": 1.0, "loss_box": 0.25, "gradient_norm": 9.0},
    {"iteration": 4, "lr": 0.2, "loss_cls": None, "loss_box": 0.5},
    {"iteration": 4, "AP": 0.1, "AP50": 0.2, "AP75": -1.0, "APs": 0.3, "val_loss": 0.75, "val_loss_cls": 0.5},
    {"iteration": 6, "lr": 0.1, "loss_cls": 0.5, "loss_box": 0.0, "loss_mimic": 0.125},
    {"iteration": 6, "AP": 0.05, "AP50": 0.3, "AP75": -1.0, "APs": 0.3},
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    figures: list[Figure] = []
    real = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), real(self, *a, **k)))
    return figures


def lines(figure: Figure, label: str) -> dict[str, tuple[list[float], list[float]]]:
    """By their names in the legend, the lines of the axes that are so labeled."""
    (ax,) = (ax for ax in figure.axes if ax.get_ylabel() == label)
    return {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines}


def test_what_the_rows_say_is_drawn(tmp_path: Path, drawn: list[Figure]) -> None:
    draw_curves(ROWS, tmp_path / "curves.png", "a run")
    losses = {name: line for name, line in lines(drawn[0], "loss").items() if not name.startswith("_")}
    assert list(losses) == ["loss  0.625", "loss_cls  0.5", "loss_box  0", "loss_mimic  0.125", "validation loss  0.75"]
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert losses["loss  0.625"] == ([2, 4, 6], [1.25, nan, 0.625])
    assert losses["loss_cls  0.5"] == ([2, 4, 6], [1.0, nan, 0.5]) and losses["loss_mimic  0.125"] == ([6], [0.125])
    assert lines(drawn[0], "AP") == {
        "AP  0.050, best 0.100 at 4": ([4, 6], [0.1, 0.05]),
        "AP50  0.300, best 0.300 at 6": ([4, 6], [0.2, 0.3]),
    }
    ((rate,),) = [lines(drawn[0], "learning rate").values()]
    assert rate == ([2, 4, 6], [0.1, 0.2, 0.1])


def test_losses_are_smoothed_by_the_median_around(tmp_path: Path, drawn: list[Figure]) -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(size=100).tolist()
    draw_curves([{"iteration": i, "lr": 0.1, "loss_cls": v} for i, v in enumerate(values)], tmp_path / "c.png", "")
    reach = int(100 * SMOOTHED_OVER / 2)
    expected = [statistics.median(values[max(i - reach, 0) : i + reach + 1]) for i in range(100)]
    found = lines(drawn[0], "loss")
    assert reach == 1 and found[f"loss_cls  {expected[-1]:.3g}"][1] == pytest.approx(expected)


@pytest.mark.parametrize(("count", "panels"), [(0, 2), (1, 2), (3, 3)])
def test_the_picture_is_whole(tmp_path: Path, drawn: list[Figure], count: int, panels: int) -> None:
    path = tmp_path / "curves.png"
    draw_curves(ROWS[:count], path, "a run")
    picture = cv2.imread(str(path))
    assert len(drawn[0].axes) == panels and picture.shape[1] == 1210 and (picture != 255).any()
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]
    assert all(text.get_window_extent().x1 <= 1210 for ax in drawn[0].axes for text in ax.texts + legend_texts(ax))


def legend_texts(ax: Any) -> list[Any]:
    return [] if ax.get_legend() is None else ax.get_legend().get_texts()


def test_a_run_draws_at_evaluations_and_goes_on_where_it_was(
    tmp_path: Path, drawn: list[Figure], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    train_set = ["train={length: 2 iterations, evaluate_every: 1 iterations, log_every: 1, preview_images: 0}"]
    options = [*small_shapes(tmp_path / "shapes", train=2, val=1), *train_set]
    run = tmp_path / "run"
    train(load_config(QUICKSTART, options), run)
    assert len(drawn) == 2 and (run / "curves.png").exists()
    train(load_config(QUICKSTART, [*options, "train.length=3 iterations"]), run, resume="auto")
    assert [row["iteration"] for row in read_metrics(run / "metrics.jsonl")] == [1, 1, 2, 2, 3, 3]
    ((iterations, _), *_) = lines(drawn[-1], "loss").values()
    assert iterations == [1, 2, 3] and [ax.get_ylabel() for ax in drawn[-1].axes] == ["loss", "AP", "learning rate"]

    def refuse(*_: Any) -> None:
        raise UserError("curves.png: cannot be written: No space left on device")

    monkeypatch.setattr(curves, "draw_curves", refuse)
    train(load_config(QUICKSTART, [*options, "train.length=4 iterations"]), run, resume="auto")
    told = capsys.readouterr().out
    assert "WARNING curves.png was not drawn: curves.png: cannot be written: No space left" in told and "done" in told
