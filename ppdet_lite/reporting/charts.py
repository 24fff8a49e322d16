"""Charts of a report, as SVG in `data:` addresses."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ppdet_lite.reporting.curves import RECALLS, Curve
from ppdet_lite.reporting.html import chart

MOST_POINTS = 400  # of a line; more cannot be seen


def precision_chart(lines: dict[str, np.ndarray]) -> str:
    """Precision over recall: each line [101] at COCO's recalls, NaN where there is nothing."""

    def draw(axes: Any) -> None:
        for name, precision in lines.items():
            axes.plot(RECALLS, precision, label=name)
        _unit_square(axes, "recall", "precision")
        axes.legend(loc="lower left", frameon=False)

    return chart(draw, 4.4, 3.3)


def rates_chart(curve: Curve | None, score: float) -> str:
    """Precision, recall and F1 over the score from which detections are taken; None for nothing found or to find."""

    def draw(axes: Any) -> None:
        if curve is not None:
            kept = _thinned(len(curve.scores))
            for name in ("precision", "recall", "f1"):
                axes.plot(curve.scores[kept], getattr(curve, name)[kept], label=name.replace("f1", "F1"))
            axes.legend(loc="lower left", frameon=False)
        axes.axvline(score, color="grey", linestyle=":")
        _unit_square(axes, "score", "")

    return chart(draw, 4.4, 3.3)


def class_chart(precision: np.ndarray, best: tuple[float, float] | None, taken: tuple[float, float] | None) -> str:
    """Precision over recall of one class; the best F1 as a dot, the chosen score as a ring: (recall, precision)."""

    def draw(axes: Any) -> None:
        axes.plot(RECALLS, precision)
        for point, colour in ((best, "C0"), (taken, "none")):
            if point is not None:
                axes.plot(*point, "o", color=colour, markeredgecolor="black", markersize=5)
        _unit_square(axes, "", "")

    return chart(draw, 2.2, 1.7)


def calibration_chart(bins: Sequence[dict[str, float]]) -> str:
    """The share of right detections over their mean score."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
        axes.plot([b["score"] for b in bins], [b["precision"] for b in bins], "o-", markersize=4)
        _unit_square(axes, "score", "share that is right")

    return chart(draw, 4.4, 3.3)


def confusion_chart(counts: np.ndarray) -> str:
    """A matrix of counts, each row in shares of its sum."""

    def draw(axes: Any) -> None:
        sums = counts.sum(axis=1, keepdims=True)
        axes.imshow(counts / np.maximum(sums, 1), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(False)
        axes.set_xlabel("found as, by class number; background last")
        axes.set_ylabel("annotated as")

    return chart(draw, 5.5, 5.5)


def differences_chart(names: Sequence[str], differences: np.ndarray) -> str:
    """Differences [B, 3] with the low and the high end of their intervals, one below the other."""

    def draw(axes: Any) -> None:
        places = -np.arange(len(names))
        value, low, high = differences.T
        axes.errorbar(value, places, xerr=[value - low, high - value], fmt="o", markersize=4, capsize=2)
        axes.axvline(0, color="grey", linestyle=":")
        axes.set_yticks(places, [_short(name) for name in names])

    return chart(draw, 4.8, 0.9 + 0.2 * max(len(names), 4))


def _short(name: str) -> str:
    """A name that leaves room beside it."""
    return name if len(name) <= 24 else f"{name[:23]}…"


def _unit_square(axes: Any, across: str, up: str) -> None:
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01), xlabel=across, ylabel=up)


def _thinned(count: int) -> np.ndarray:
    """Some of so many positions, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(int))
