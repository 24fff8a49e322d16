"""Operators with a backward pass of their own, which can run once."""

from paddle import Tensor


def backward_once(out: Tensor) -> Tensor:
    """The result of a `PyLayer`, which raises an error when gradients reach it a second time.

    Paddle 3.3 frees a PyLayer's context after one backward pass, `retain_graph` or not. A second pass over the same
    graph would end the process with a segmentation fault.
    """
    if not out.stop_gradient:
        passes: list[bool] = []

        def refuse_second(_: Tensor) -> None:
            if passes:
                raise RuntimeError("a second backward pass over one graph: compute the losses anew for each")
            passes.append(True)

        out.register_hook(refuse_second)
    return out
