"""Backward passes of our own, which can be taken once."""

from paddle import Tensor


def once(out: Tensor) -> Tensor:
    """The result of a `PyLayer`, that raises an error where gradients come back to it a second time.

    Paddle 3.3 lets go of a PyLayer's context after one backward pass, `retain_graph` or not: a second one over the same
    graph would end the process with a segmentation fault.
    """
    if not out.stop_gradient:
        came: list[bool] = []

        def refuse_a_second(_: Tensor) -> None:
            if came:
                raise RuntimeError("a second backward pass over one graph: compute the losses anew for each")
            came.append(True)

        out.register_hook(refuse_a_second)
    return out
