"""Charts of a report, as SVG images in `data:` URLs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppdet_lite.reporting.curves import RECALLS, Curve
from ppdet_lite.reporting.html import chart, svg

MAX_POINTS = 400  # of a line; more are not visible
CONFUSION_CELL, MAX_CONFUSION_SIDE = 0.12, 20.0  # inches: side of a cell with a label, and of the whole matrix


def precision_chart(lines: dict[str, np.ndarray]) -> str:
    """Plot precision over recall; each line [101] has the values at COCO's recalls, NaN where undefined."""

    def draw(axes: Any) -> None:
        for name, precision in lines.items():
            axes.plot(RECALLS, precision, label=name)
        _unit_square(axes, "recall", "precision")
        axes.legend(loc="lower left", frameon=False)

    return chart(draw, 4.4, 3.3)


def rates_chart(curve: Curve | None, score: float) -> str:
    """Plot precision, recall and F1 over the minimum score; curve is None without detections or objects."""

    def draw(axes: Any) -> None:
        if curve is not None:
            kept = _thinned(len(curve.scores))
            for name in ("precision", "recall", "f1"):
                axes.plot(curve.scores[kept], getattr(curve, name)[kept], label=name.replace("f1", "F1"))
            axes.legend(loc="lower left", frameon=False)
        axes.axvline(score, color="gray", linestyle=":")
        _unit_square(axes, "score", "")

    return chart(draw, 4.4, 3.3)


def class_chart(precision: np.ndarray, best: tuple[float, float] | None, chosen: tuple[float, float] | None) -> str:
    """Plot precision over recall of one class; best F1 (dot) and chosen score (ring) are (recall, precision)."""

    def draw(axes: Any) -> None:
        axes.plot(RECALLS, precision)
        for point, color in ((best, "C0"), (chosen, "none")):
            if point is not None:
                axes.plot(*point, "o", color=color, markeredgecolor="black", markersize=5)
        _unit_square(axes, "", "")

    return chart(draw, 2.2, 1.7)


def calibration_chart(bins: Sequence[dict[str, float]]) -> str:
    """Plot the fraction of correct detections over their mean score."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="gray", linestyle=":")
        axes.plot([b["score"] for b in bins], [b["precision"] for b in bins], "o-", markersize=4)
        _unit_square(axes, "score", "fraction correct")

    return chart(draw, 4.4, 3.3)


def confusion_chart(counts: np.ndarray, names: Sequence[str]) -> str:
    """Plot a confusion matrix of counts [N, N] with the names of its classes; each row is normalized by its sum."""
    side = min(max(3 + CONFUSION_CELL * len(names), 5.5), MAX_CONFUSION_SIDE)
    step = int(np.ceil(CONFUSION_CELL * len(names) / (MAX_CONFUSION_SIDE - 3)))  # every class has a label if they fit

    def draw(axes: Any) -> None:
        sums = counts.sum(axis=1, keepdims=True)
        axes.imshow(counts / np.maximum(sums, 1), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(False)
        shown = range(0, len(names), step)
        axes.set_xticks(shown, [_short(names[k]) for k in shown], rotation=90, fontsize=7)
        axes.set_yticks(shown, [_short(names[k]) for k in shown], fontsize=7)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("annotated class")

    return chart(draw, side, side)


def differences_chart(names: Sequence[str], differences: np.ndarray) -> str:
    """Plot the difference and its interval for each name, one below the other; differences: [N, 3] value, low, high."""

    def draw(axes: Any) -> None:
        rows = -np.arange(len(names))
        value, low, high = differences.T
        axes.errorbar(value, rows, xerr=[value - low, high - value], fmt="o", markersize=4, capsize=2)
        axes.axvline(0, color="gray", linestyle=":")
        axes.set_yticks(rows, [_short(name) for name in names])

    return chart(draw, 4.8, 0.9 + 0.2 * max(len(names), 4))


def offset_chart(table: dict[str, Any]) -> bytes:
    """Plot an `offset_table` as an SVG: effective dilation, and the share of samples outside of boxes, by object size.

    Lines end at one standard deviation from the mean; dashes show a convolution without offsets.
    """
    layers, stacked = table["layers"], table["stacked"]
    names = [name.removeprefix("backbone.").removesuffix(".conv") for name in layers]
    paths = {**dict(zip(names, layers.values(), strict=True)), f"{len(stacked['layers'])} stacked": stacked}

    def draw(dilations: Any, shares: Any) -> None:
        _bars(dilations, names, [layer["effective_dilation"] for layer in layers.values()])
        dilations.margins(y=0.3)  # room for the legend
        dilations.set_ylim(bottom=0)
        dilations.set_ylabel("effective dilation (cells)")
        dilations.legend(frameon=False, fontsize=7, ncols=2)
        _bars(shares, list(paths), [path["outside_box"] for path in paths.values()])
        for row, path in enumerate(paths.values()):
            for column, moments in enumerate(path["outside_box_without_offsets"].values()):
                if moments["mean"] is not None:
                    x = row + 0.2 * (column - 1)
                    shares.plot([x - 0.1, x + 0.1], [moments["mean"]] * 2, color="black", linestyle=":")
        shares.set(ylim=(0, 1.01), ylabel="samples outside of the box")

    return svg(draw, 3 + 0.9 * len(paths), 3.3, columns=2)


def _bars(axes: Any, names: Sequence[str], groups: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Plot a group of bars, mean and standard deviation by object size, for each name."""
    sizes = list(groups[0])
    for column, size in enumerate(sizes):
        x = np.arange(len(names)) + 0.2 * (column - (len(sizes) - 1) / 2)
        mean, std = (np.array([group[size][key] for group in groups], float) for key in ("mean", "std"))
        axes.bar(x, mean, 0.18, yerr=std, label=size, color=f"C{column}", error_kw={"elinewidth": 0.8})
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)


def _short(name: str) -> str:
    """Return a name truncated to 24 characters."""
    return name if len(name) <= 24 else f"{name[:23]}…"


def _unit_square(axes: Any, x_label: str, y_label: str) -> None:
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel=x_label, ylabel=y_label)


def _thinned(count: int) -> np.ndarray:
    """Return at most MAX_POINTS evenly spaced indices below `count`, including the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, MAX_POINTS)).astype(int))
