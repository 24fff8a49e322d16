"""Losses shared by the RPN and the box head."""

from typing import Literal

from paddle import Tensor

BoxLossName = Literal["l1", "smooth_l1"]


def sum_box_loss(deltas: Tensor, targets: Tensor, kind: BoxLossName, beta: float) -> Tensor:
    """Sum over [F, 4] deltas of |d|, or of the smooth form d^2 / (2 beta) below beta and |d| - beta/2 above.

    Scalar; 0 with F = 0. Callers divide by their own count.
    """
    difference = (deltas - targets).abs()
    if kind == "l1":
        return difference.sum()
    quadratic = difference.clip(max=beta)
    return (quadratic * quadratic / (2 * beta) + (difference - quadratic)).sum()
