"""Averages of tensors over ranks; that of gradients starts while the backward pass computes the remaining ones.

NCCL and gloo match the reductions of different ranks by their order, so all ranks must start them in the same order.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import paddle
from paddle import Tensor, nn
from paddle import distributed as dist

from ppdet_lite.assembly import ranks
from ppdet_lite.core.errors import RunFailed
from ppdet_lite.modeling.norm import has_sync_bn

BUCKET = 1 << 22  # elements per reduction (16 MiB): larger buckets start later, smaller ones cost more calls

_gloo = ThreadPoolExecutor(max_workers=1)  # gloo blocks its caller, but releases Python's lock


class GradientAverage:
    """The average, in one training step, of a network's gradients over ranks; with one rank it does nothing.

    Gradients are averaged in buckets, last layers first, since the backward pass computes those first. The order of
    buckets is the same on all ranks whatever their images contain: a bucket starts once all gradients in it and in the
    buckets before it are computed. If the backward pass leaves one out, its bucket and those after it start at the end,
    and a gradient that some ranks lack counts as 0 there. All buckets of a network with sync_bn start at the end: its
    own reductions in the backward pass could come before a bucket on one rank and after it on another.
    """

    def __init__(self, network: nn.Layer) -> None:
        named = network.named_parameters() if ranks.world() > 1 else []
        self._parameters = {name: parameter for name, parameter in named if not parameter.stop_gradient}
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._buckets = _buckets(list(self._parameters.values())[::-1])
        self._computed: set[int] = set()  # ids of the parameters whose gradients are complete
        self._means: list[Callable[[], list[Tensor]]] = []  # of the buckets that have started, in their order
        self._error: Exception | None = None
        self.has_sync_bn = ranks.world() > 1 and has_sync_bn(network)

    @contextlib.contextmanager
    def during_backward(self) -> Iterator[None]:
        """Start buckets inside the block, the last backward pass of a step."""
        parameters = [] if self.has_sync_bn else self._parameters.values()
        hooks = [parameter.register_hook(functools.partial(self._on_gradient, parameter)) for parameter in parameters]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if self._error is not None:
            raise self._error

    def _on_gradient(self, parameter: Tensor, _: Tensor) -> None:
        """Start the buckets that are complete. Paddle calls this right before it adds the gradient to parameter.grad.

        So parameter.grad is complete in the next call. Paddle would lose the message of an error raised here.
        """
        try:
            while self._error is None and len(self._means) < len(self._buckets):
                if any(id(parameter) not in self._computed for parameter in self._buckets[len(self._means)]):
                    break
                self._start_next()
        except Exception as error:
            self._error = error
        self._computed.add(id(parameter))

    @contextlib.contextmanager
    def all_started(self) -> Iterator[None]:
        """Start the remaining buckets after the block, also if it fails: the other ranks have started or will start."""
        try:
            yield
        finally:
            while len(self._means) < len(self._buckets):
                self._start_next()

    def _start_next(self) -> None:
        bucket = self._buckets[len(self._means)]
        self._means.append(start_average([paddle.zeros_like(p) if p.grad is None else p.grad for p in bucket]))

    @property
    def missing(self) -> set[str]:
        """The names of the parameters without a gradient on this rank."""
        return {name for name, parameter in self._parameters.items() if parameter.grad is None}

    def finish(self, missing: Sequence[set[str]]) -> None:
        """Wait for the means and make them the gradients; a parameter that is missing on all ranks gets none.

        Raises RunFailed when another rank has ended.
        """
        nowhere = set.intersection(*missing)
        for bucket in self._buckets:
            wait_for_means = self._means.pop(0)  # and free the copy of the bucket
            for parameter, mean in zip(bucket, wait_for_means(), strict=True):
                if self._names[id(parameter)] not in nowhere:
                    parameter.grad = mean


@paddle.no_grad()
def average_tensors(tensors: Sequence[Tensor]) -> None:
    """Replace each float32 tensor by its mean over ranks. All ranks pass the same shapes in the same order.

    Raises RunFailed when another rank has ended.
    """
    if ranks.world() == 1:
        return
    for bucket in _buckets(tensors):
        for tensor, mean in zip(bucket, start_average(bucket)(), strict=True):
            paddle.assign(mean, tensor)


@paddle.no_grad()
def start_average(tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """Start to average float32 tensors over ranks; return a function that waits for the means and returns them.

    NCCL has a stream of its own. It begins after the computations that are queued now; those that are queued after the
    returned function wait for it. gloo runs in a thread. The function raises RunFailed when another rank has ended.
    """
    flat = paddle.concat([tensor.flatten() for tensor in tensors])
    if flat.place.is_gpu_place():
        wait_for_sum = dist.all_reduce(flat, sync_op=False).wait
    else:
        wait_for_sum = _gloo.submit(dist.all_reduce, flat).result

    @paddle.no_grad()
    def means() -> list[Tensor]:
        try:
            wait_for_sum()
        except (RuntimeError, OSError) as error:  # from gloo or NCCL, whose messages contain addresses only
            raise RunFailed(f"another rank has ended during a step; {ranks.SEE_LOGS}") from error
        parts = (flat / ranks.world()).split([tensor.size for tensor in tensors])
        return [part.reshape(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    return means


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Divide tensors, in their order, into groups of at most `BUCKET` elements or one tensor."""
    groups: list[list[Tensor]] = []
    for tensor in tensors:
        if not groups or sum(part.size for part in groups[-1]) + tensor.size > BUCKET:
            groups.append([])
        groups[-1].append(tensor)
    return groups
