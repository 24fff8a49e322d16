"""curves.png: losses, AP and the learning rate over the iterations, readable without VisualDL."""

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.log import get_logger
from ppdet_lite.storage.files import output_file
from ppdet_lite.training.metrics_file import read_metrics
from ppdet_lite.training.sinks import Sink

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")  # Okabe and Ito's
INK = "#222222"  # of text and of the total loss
METRICS = ("AP", "AP50", "AP75")
SMOOTHED_OVER = 1 / 30  # window of the running median, relative to the number of recorded iterations
Series = tuple[np.ndarray, np.ndarray]  # iterations, values


class CurvesPlot(Sink):
    """Draws curves.png from the metrics.jsonl of a run's folder. A failure is logged and does not end the run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def draw(self) -> None:
        """Redraw the plot."""
        try:
            draw_curves(read_metrics(self._folder / "metrics.jsonl"), self._folder / "curves.png", self._folder.name)
        except Exception as error:
            get_logger().warning("curves.png was not drawn: %s", error)


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw the rows of a metrics.jsonl into a PNG, written atomically. Raises UserError when it cannot be written.

    Losses are drawn twice: faintly as measured, and smoothed by a running median. The legend shows the latest values.
    """
    from matplotlib.figure import Figure  # imported late, since it is slow; without pyplot it needs no display

    losses = {name: _series(rows, name) for name in _loss_names(rows)}
    if losses:
        losses = {"loss": _total(rows, list(losses)), **losses}
    metrics = {name: series for name in METRICS if len((series := _series(rows, name, least=0))[0])}
    heights = [4, 2.5, 1.5] if metrics else [4, 1.5]
    inches = 1.2 * sum(heights)
    figure = Figure(figsize=(11, inches))
    margins = {"left": 0.09, "right": 0.72, "top": 1 - 0.5 / inches, "bottom": 0.6 / inches, "hspace": 0.12}
    axes = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, gridspec_kw=margins)
    figure.text(0.09, 1 - 0.2 / inches, title, va="center", fontsize=12, color=INK)
    _draw_losses(axes[0], losses, _series(rows, "val_loss"))
    if metrics:
        _draw_metrics(axes[1], metrics)
    _draw_rate(axes[-1], _series(rows, "lr"))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(color="#e5e5e5", linewidth=0.8)
        ax.set_axisbelow(True)
        ax.tick_params(which="both", colors=INK, labelsize=9)
        ax.yaxis.set_label_coords(-0.11, 0.5)
    axes[-1].set_xlabel("iteration", color=INK)
    axes[-1].xaxis.set_major_formatter("{x:,.0f}")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    with output_file(path) as file:
        file.write(png.getvalue())


def _draw_losses(ax: Any, losses: Mapping[str, Series], validation: Series) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    ax.set_ylabel("loss", color=INK)
    for (name, (iterations, values)), color in zip(losses.items(), (INK, *COLORS * 3)):
        smooth = _running_median(values)
        latest = smooth[np.isfinite(smooth)][-1:]
        label = "  ".join([name, *(f"{value:.3g}" for value in latest)])
        width, marker = 2.0 if name == "loss" else 1.4, "o" if len(values) == 1 else None
        ax.plot(iterations, values, color=color, linewidth=0.7, alpha=0.2, zorder=2)
        ax.plot(iterations, smooth, color=color, linewidth=width, marker=marker, label=label, zorder=3)
    if len(validation[0]):
        style = {"color": INK, "linewidth": 1.4, "linestyle": "--", "marker": "o", "markersize": 3.5}
        ax.plot(*validation, label=f"validation loss  {validation[1][-1]:.3g}", zorder=3, **style)
    if any((values > 0).any() for _, values in losses.values()):
        ax.set_yscale("log", nonpositive="mask")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_major_formatter("{x:g}")
    if losses:
        _legend(ax)


def _draw_metrics(ax: Any, metrics: Mapping[str, Series]) -> None:
    ax.set_ylabel("AP", color=INK)
    for (name, (iterations, values)), color in zip(metrics.items(), (INK, *COLORS)):
        best = int(values.argmax())
        label = f"{name}  {values[-1]:.3f}, best {values[best]:.3f} at {iterations[best]:,.0f}"
        width = 2.0 if name == "AP" else 1.4
        style = {"color": color, "linewidth": width, "marker": "o", "markersize": 3.5}
        ax.plot(iterations, values, label=label, zorder=3, clip_on=False, **style)
    ax.set_ylim(bottom=0)
    _legend(ax)


def _draw_rate(ax: Any, rate: Series) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.set_ylabel("learning rate", color=INK)
    ax.plot(*rate, color=INK, linewidth=1.4, marker="o" if len(rate[0]) == 1 else None)
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.yaxis.set_major_formatter("{x:g}")


def _legend(ax: Any) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, frameon=False, fontsize=9, labelcolor=INK)


def _loss_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name.startswith("loss_")))


def _series(rows: Sequence[Mapping[str, Any]], name: str, least: float | None = None) -> Series:
    """Return the values of one name, null as NaN, without those below `least` (COCO reports -1 without objects)."""
    pairs = [(row["iteration"], np.nan if row[name] is None else row[name]) for row in rows if name in row]
    iterations, values = np.array(pairs, float).reshape(-1, 2).T
    kept = np.ones(len(values), bool) if least is None else values >= least
    return iterations[kept], values[kept]


def _total(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Series:
    """Return the sum of all losses in each row."""
    summed = []
    for row in rows:
        if parts := [row[name] for name in names if name in row]:
            summed.append({"iteration": row["iteration"], "loss": None if None in parts else sum(parts)})
    return _series(summed, "loss")


def _running_median(values: np.ndarray) -> np.ndarray:
    """Return the running median of values; near the ends the window is smaller."""
    reach = int(len(values) * SMOOTHED_OVER / 2)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(values, reach, constant_values=np.nan), 2 * reach + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the median of NaNs alone is NaN
        return np.nanmedian(around, axis=1) if reach else values
