"""Distributed processes (ranks), one per device, as `paddle.distributed.launch` starts them.

Tensors are reduced by Paddle (NCCL or gloo). Python objects, such as losses, errors and stop requests, are exchanged
over separate sockets between rank 0 and each other rank, for two reasons: gloo has a timeout of 30 seconds, which an
evaluation exceeds, and a closed socket shows immediately which rank has ended. A single process opens no socket.
"""

import ctypes
import os
import pickle
import secrets
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, TypeVar

import paddle
from paddle import Tensor
from paddle import distributed as dist

from ppdet_lite.core.errors import NotFinite, RunFailed, Stopped, UserError

T = TypeVar("T")
BUCKET = 1 << 23  # elements per all-reduce, a compromise between the number of calls and the memory for a copy
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a dead machine is detected after 25 s
PR_SET_PDEATHSIG = 1  # sys/prctl.h
SEE_LOGS = "see the log of each rank N, workerlog.N in the launcher's --log_dir"

_links: list[Connection] = []  # on rank 0: to ranks 1, 2, ...; on any other rank: to rank 0


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank()


def world() -> int:
    """Return the number of ranks."""
    return dist.get_world_size()


def start() -> None:
    """Connect to the other ranks; later calls do nothing. On Linux, a launched process ends when its launcher does."""
    if "PADDLE_TRAINER_ID" in os.environ:  # Paddle's launchers set it
        _end_with_parent()
    if world() == 1 or _links:
        return
    dist.init_parallel_env()
    received: list[Any] = [None]
    if rank() == 0:
        host = os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0].rpartition(":")[0]
        key = secrets.token_bytes(32)
        with Listener((host, 0), backlog=world(), authkey=key) as listener:
            dist.broadcast_object_list([(listener.address, key)], src=0)
            links = [listener.accept() for _ in range(1, world())]
        by_rank = {link.recv(): link for link in links}
        _links.extend(by_rank[number] for number in range(1, world()))
    else:
        dist.broadcast_object_list(received, src=0)
        address, key = received[0]
        _links.append(Client(address, authkey=key))
        _links[0].send(rank())
    for link in _links:
        _keep_alive(link)


def on_all_ranks(work: Callable[[], T]) -> list[T]:
    """Call `work` on every rank and return the results in the order of ranks. They are pickled and should be small.

    An exception of one rank is raised on all ranks: unchanged on that rank; elsewhere as UserError, NotFinite,
    RunFailed or Stopped, with the rank in the message. Raises RunFailed when another rank has ended.
    """
    if world() == 1:
        return [work()]
    result, failure = None, None
    try:
        result = work()
    except (Exception, Stopped) as error:
        failure = error
    try:
        answers = _exchange((result, None if failure is None else _describe_error(failure)))
    except RunFailed as lost:
        raise failure or lost from None
    if failure is not None:
        raise failure
    for number, (_, description) in enumerate(answers):
        if description is not None:
            raise _error_of_rank(number, *description)
    return [result for result, _ in answers]


def on_rank0(work: Callable[[], T]) -> T:
    """Call `work` on rank 0 only and return its result on all ranks, which wait for it."""
    return on_all_ranks(lambda: work() if rank() == 0 else None)[0]


@paddle.no_grad()
def average_tensors(tensors: Sequence[Tensor]) -> None:
    """Replace each float32 tensor by its mean over ranks. All ranks pass the same shapes in the same order.

    Raises RunFailed when another rank has ended.
    """
    if world() == 1:
        return
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(part.size for part in bucket) + tensor.size > BUCKET:
            _average_bucket(bucket)
            bucket = []
        bucket.append(tensor)
    if bucket:
        _average_bucket(bucket)


def _average_bucket(tensors: Sequence[Tensor]) -> None:
    flat = paddle.concat([tensor.flatten() for tensor in tensors])
    try:
        dist.all_reduce(flat)
    except (RuntimeError, OSError) as error:  # from gloo or NCCL, whose messages contain addresses only
        raise RunFailed(f"another rank has ended during a step; {SEE_LOGS}") from error
    for tensor, mean in zip(tensors, (flat / world()).split([tensor.size for tensor in tensors]), strict=True):
        paddle.assign(mean.reshape(tensor.shape), tensor)


def _exchange(message: Any) -> list[Any]:
    """Send this rank's message to all ranks; return the messages of all, in the order of ranks."""
    if rank() != 0:
        return _call_link(0, lambda: (_links[0].send(message), _links[0].recv())[1])
    messages = {0: message}
    while waiting := [link for number, link in enumerate(_links, start=1) if number not in messages]:
        for link in wait(waiting):
            number = _links.index(link) + 1
            messages[number] = _call_link(number, link.recv)
    answer = pickle.dumps([messages[number] for number in range(world())])
    for number, link in enumerate(_links, start=1):
        _call_link(number, lambda link=link: link.send_bytes(answer))
    return [messages[number] for number in range(world())]


def _call_link(number: int, transfer: Callable[[], T]) -> T:
    """Send or receive; a closed connection is reported as the end of rank `number`."""
    try:
        return transfer()
    except (EOFError, OSError) as error:
        raise RunFailed(f"rank {number} has ended without an error message; {SEE_LOGS}") from error


def _describe_error(error: BaseException) -> tuple[str, str, int]:
    """Return an error's class name, message and exit code, to be sent to other ranks."""
    known = isinstance(error, (UserError, RunFailed, Stopped))
    return type(error).__name__, str(error) if known else f"{type(error).__name__}: {error}", getattr(error, "code", 0)


def _error_of_rank(number: int, kind: str, text: str, code: int) -> BaseException:
    """Return the exception to raise here for an error that `_describe_error` described on rank `number`."""
    if kind == Stopped.__name__:
        return Stopped(text, code)
    kinds = {known.__name__: known for known in (UserError, NotFinite)}
    return kinds.get(kind, RunFailed)(f"rank {number}: {text}")


def _keep_alive(link: Connection) -> None:
    with socket.socket(fileno=os.dup(link.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                end.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent ends for any reason (Linux only)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
