"""Processes that work as one, each on a device of its own, as `paddle.distributed.launch` starts them.

Tensors go Paddle's way (NCCL, gloo). What is said beside them, such as losses, failures and a wish to stop, goes over
sockets of our own between rank 0 and each other rank: gloo gives up waiting after 30 seconds, which an evaluation
exceeds, and a closed socket tells at once which rank has ended. A single process pays for none of it.
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
BUCKET = 1 << 23  # elements that are reduced together: many small ones at once, without a copy of the whole model
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a dead machine shows in 25 s
PR_SET_PDEATHSIG = 1  # sys/prctl.h
WHERE = "the file workerlog.N of each rank N, in the launcher's --log_dir, says more"

_links: list[Connection] = []  # of rank 0 to each other rank, in their order; of another one to rank 0


def rank() -> int:
    """The number of this process among those that work together."""
    return dist.get_rank()


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size()


def start() -> None:
    """Meet the other processes, if there are any; once is enough. From now on this one ends with its launcher."""
    if "PADDLE_TRAINER_ID" in os.environ:  # Paddle's launchers set it
        _end_with_parent()
    if world() == 1 or _links:
        return
    dist.init_parallel_env()
    place: list[Any] = [None]
    if rank() == 0:
        host = os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0].rpartition(":")[0]
        key = secrets.token_bytes(32)
        with Listener((host, 0), backlog=world(), authkey=key) as listener:
            dist.broadcast_object_list([(listener.address, key)], src=0)
            links = [listener.accept() for _ in range(1, world())]
        by_rank = {link.recv(): link for link in links}
        _links.extend(by_rank[number] for number in range(1, world()))
    else:
        dist.broadcast_object_list(place, src=0)
        address, key = place[0]
        _links.append(Client(address, authkey=key))
        _links[0].send(rank())
    for link in _links:
        _keep_alive(link)


def together(work: Callable[[], T]) -> list[T]:
    """Do this rank's share of something; return what every rank's share gave, by rank. Results are small.

    What fails on one rank is raised on all of them: there as it is, elsewhere as UserError, RunFailed or Stopped that
    says where. Raises RunFailed when another rank has ended.
    """
    if world() == 1:
        return [work()]
    result, failure = None, None
    try:
        result = work()
    except (Exception, Stopped) as error:
        failure = error
    try:
        answers = _exchange((result, None if failure is None else _told(failure)))
    except RunFailed as lost:
        raise failure or lost from None
    if failure is not None:
        raise failure
    for number, (_, told) in enumerate(answers):
        if told is not None:
            raise _from_elsewhere(number, *told)
    return [result for result, _ in answers]


def first(work: Callable[[], T]) -> T:
    """Do something on rank 0 alone; return its result on all ranks, when it is done."""
    return together(lambda: work() if rank() == 0 else None)[0]


@paddle.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Put into each float32 tensor its mean over the ranks, which bring equal shapes in the same order.

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
    except (RuntimeError, OSError) as error:  # gloo's and NCCL's; their words name addresses only
        raise RunFailed(f"another rank has ended in the middle of a step; {WHERE}") from error
    for tensor, mean in zip(tensors, (flat / world()).split([tensor.size for tensor in tensors]), strict=True):
        paddle.assign(mean.reshape(tensor.shape), tensor)


def _exchange(message: Any) -> list[Any]:
    """The messages of all ranks, by rank."""
    if rank() != 0:
        return _listening(0, lambda: (_links[0].send(message), _links[0].recv())[1])
    messages = {0: message}
    while waiting := [link for number, link in enumerate(_links, start=1) if number not in messages]:
        for link in wait(waiting):
            number = _links.index(link) + 1
            messages[number] = _listening(number, link.recv)
    answer = pickle.dumps([messages[number] for number in range(world())])
    for number, link in enumerate(_links, start=1):
        _listening(number, lambda link=link: link.send_bytes(answer))
    return [messages[number] for number in range(world())]


def _listening(number: int, talk: Callable[[], T]) -> T:
    try:
        return talk()
    except (EOFError, OSError) as error:
        raise RunFailed(f"rank {number} has ended without a word to the others; {WHERE}") from error


def _told(error: BaseException) -> tuple[str, str, int]:
    """An error as others are told of it: its kind, what it says, an exit code."""
    known = isinstance(error, (UserError, RunFailed, Stopped))
    return type(error).__name__, str(error) if known else f"{type(error).__name__}: {error}", getattr(error, "code", 0)


def _from_elsewhere(number: int, kind: str, text: str, code: int) -> BaseException:
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
    """Have SIGTERM sent to this process when the one that started it has ended, however that ends (Linux only)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
