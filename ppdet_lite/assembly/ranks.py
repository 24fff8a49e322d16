"""Distributed processes (ranks), one per device, as `paddle.distributed.launch` starts them.

Tensors are reduced by Paddle with NCCL or gloo (`training.gradient_average`). Python objects, such as losses, errors
and stop requests, are exchanged over separate sockets between rank 0 and each other rank, for two reasons: gloo has a
timeout of 30 seconds, which an evaluation exceeds, and a closed socket shows immediately which rank has ended. A single
process opens no socket.
"""

import contextlib
import ctypes
import os
import pickle
import secrets
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Client, Connection, Listener, wait
from typing import Any, TypeVar

from paddle import distributed as dist

from ppdet_lite.core.errors import NotFinite, RunFailed, Stopped, UserError
from ppdet_lite.core.log import get_logger

T = TypeVar("T")
PATIENCE = 10.0  # seconds that a failed rank waits for the others if these may wait for it in a reduction
GRACE = 3.0  # seconds in which a reduction should notice that another rank has ended
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # a dead machine is detected after 25 s
PR_SET_PDEATHSIG = 1  # sys/prctl.h
SEE_LOGS = "see the log of each rank N, workerlog.N in the launcher's --log_dir"

_links: list[Connection] = []  # on rank 0: to ranks 1, 2, ...; on any other rank: to rank 0
_watched: object | None = None  # the current block of `watched`


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
    _select_loopback_without_host_name()
    dist.init_parallel_env()
    if rank() == 0:
        host = os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")[0].rpartition(":")[0]
        key = secrets.token_bytes(32)
        with Listener((host, 0), backlog=world(), authkey=key) as listener:
            dist.broadcast_object_list([(listener.address, key)], src=0)
            links = [listener.accept() for _ in range(1, world())]
        by_rank = {link.recv(): link for link in links}
        _links.extend(by_rank[number] for number in range(1, world()))
    else:
        received: list[Any] = [None]
        dist.broadcast_object_list(received, src=0)
        address, key = received[0]
        _links.append(Client(address, authkey=key))
        _links[0].send(rank())
    for link in _links:
        _keep_alive(link)
    threading.Thread(target=_end_when_abandoned, daemon=True).start()


def _select_loopback_without_host_name() -> None:
    """Select the loopback interface for gloo if all ranks run on this machine and its name has no address.

    By default gloo uses the address of the machine's name, which /etc/hosts of a minimal system or container may lack.
    A user's GLOO_SOCKET_IFNAME is kept.
    """
    hosts = {end.rpartition(":")[0] for end in os.environ["PADDLE_TRAINER_ENDPOINTS"].split(",")}
    if "GLOO_SOCKET_IFNAME" in os.environ or len(hosts) > 1 or sys.platform == "win32":
        return
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"


def on_all_ranks(work: Callable[[], T], reduces: bool = False) -> list[T]:
    """Call `work` on every rank and return the results in the order of ranks. They are pickled and should be small.

    An exception of one rank is raised on all ranks: unchanged on that rank; elsewhere as UserError, NotFinite,
    RunFailed or Stopped, with the rank in the message. Raises RunFailed when another rank has ended.

    reduces: whether `work` waits for reductions, as the forward pass of sync_bn does. If it fails on one rank, the
        others may then wait for that rank forever: after `PATIENCE` seconds it leaves, and `watched` ends them.
    """
    if world() == 1:
        return [work()]
    result, failure = None, None
    try:
        with watched() if reduces else contextlib.nullcontext():
            result = work()
    except (Exception, Stopped) as error:
        failure = error
    message = (result, None if failure is None else _describe_error(failure))
    try:
        answers = _exchange(message, PATIENCE if reduces and failure is not None else None)
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


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """End this process, with one line and exit code 1, if another rank ends but the block does not.

    The block then waits for that rank in a reduction: gloo raises an error, but NCCL waits forever.
    """
    global _watched
    _watched = object()
    try:
        yield
    finally:
        _watched = None


def _end_when_abandoned() -> None:
    """Wait until another rank has ended while this one is in a block of `watched`; end this process."""
    closed = select.poll()
    for link in _links:
        closed.register(link.fileno(), getattr(select, "POLLRDHUP", 0))  # besides POLLHUP
    while True:
        time.sleep(1)
        block, ended = _watched, closed.poll(0)
        if block is None or not ended:
            continue
        time.sleep(GRACE)
        if _watched is block:
            numbered = enumerate(_links, start=1 if rank() == 0 else 0)
            number, link = next((number, link) for number, link in numbered if link.fileno() == ended[0][0])
            get_logger().error("%s; this rank waited for it in a reduction", _reason(number, link))
            os._exit(1)


def _reason(number: int, link: Connection) -> str:
    """Return why rank `number` has closed its connection: the error that it sent before, if any."""
    with contextlib.suppress(EOFError, OSError):
        _, description = link.recv()
        if description is not None:
            return f"rank {number}: {description[1]}"
    return f"rank {number} has ended without an error message; {SEE_LOGS}"


def _exchange(message: Any, patience: float | None = None) -> list[Any]:
    """Send this rank's message to all ranks; return the messages of all, in the order of ranks.

    patience: seconds to wait for another rank before this rank leaves and raises RunFailed; None for no limit.
    """
    if not _links:
        raise RunFailed("this rank has left the others")
    if rank() != 0:
        _call_link(0, lambda: _links[0].send(message))
        if not _call_link(0, lambda: _links[0].poll(patience)):
            _leave()
        return _call_link(0, _links[0].recv)
    messages = {0: message}
    while waiting := [link for number, link in enumerate(_links, start=1) if number not in messages]:
        ready = wait(waiting, patience)
        if not ready:
            _leave()
        for link in ready:
            number = _links.index(link) + 1
            messages[number] = _call_link(number, link.recv)
    answer = pickle.dumps([messages[number] for number in range(world())])
    for number, link in enumerate(_links, start=1):
        _call_link(number, lambda link=link: link.send_bytes(answer))
    return [messages[number] for number in range(world())]


def _leave() -> None:
    """Close the connections, which ends `watched` ranks; raise RunFailed."""
    for link in _links:
        link.close()
    _links.clear()
    raise RunFailed("the other ranks wait for this one in a reduction")


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
