"""A guard for operators with a custom backward pass, which can run only once."""

from paddle import Tensor


def backward_once(out: Tensor) -> Tensor:
    """Return the result of a `PyLayer` with a hook that raises RuntimeError when a second gradient reaches it.

    Paddle 3.3 frees a PyLayer's context after one backward pass, even with `retain_graph`. A second pass over the same
    graph would end the process with a segmentation fault.
    """
    if not out.stop_gradient:
        passes: list[bool] = []

        def refuse_second(_: Tensor) -> None:
            if passes:
                raise RuntimeError("second backward pass over the same graph: compute the losses again for each pass")
            passes.append(True)

        out.register_hook(refuse_second)
    return out
