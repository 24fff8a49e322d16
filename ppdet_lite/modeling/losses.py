"""Losses shared by the RPN and the box head."""

from typing import Literal

from paddle import Tensor

from ppdet_lite.core.errors import IncompatibleArguments

BoxLossName = Literal["l1", "smooth_l1"]
DEFAULT_BETA = 1 / 9  # torchvision's


def require_used_beta(kind: BoxLossName, beta: float) -> None:
    """Raise IncompatibleArguments if a beta is given that the loss does not have."""
    if kind == "l1" and beta != DEFAULT_BETA:
        reason = f"{beta:g} has no effect with box_loss l1; set box_loss: smooth_l1, or remove beta"
        raise IncompatibleArguments("beta", reason)


def sum_box_loss(deltas: Tensor, targets: Tensor, kind: BoxLossName, beta: float) -> Tensor:
    """Return the sum of the L1 or smooth L1 loss over deltas [F, 4]: a scalar, 0 if F = 0; callers normalize it.

    With d = deltas - targets, L1 is |d|; smooth L1 is d^2 / (2 beta) for |d| < beta and |d| - beta/2 above.
    """
    difference = (deltas - targets).abs()
    if kind == "l1":
        return difference.sum()
    quadratic = difference.clip(max=beta)
    return (quadratic * quadratic / (2 * beta) + (difference - quadratic)).sum()
