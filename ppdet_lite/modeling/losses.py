"""Losses shared by the RPN and the box head."""

from typing import Literal

from paddle import Tensor

BoxLossName = Literal["l1", "smooth_l1"]


def sum_box_loss(deltas: Tensor, targets: Tensor, kind: BoxLossName, beta: float) -> Tensor:
    """Return the sum of the L1 or smooth L1 loss over deltas [F, 4]: a scalar, 0 if F = 0; callers normalize it.

    With d = deltas - targets, L1 is |d|; smooth L1 is d^2 / (2 beta) for |d| < beta and |d| - beta/2 above.
    """
    difference = (deltas - targets).abs()
    if kind == "l1":
        return difference.sum()
    quadratic = difference.clip(max=beta)
    return (quadratic * quadratic / (2 * beta) + (difference - quadratic)).sum()
