"""Other projects' names for the weights of a detector.

`PEERS` has a function each: from the names and shapes of a model of ours to its `Peer` (see `rules`).
"""

from collections.abc import Callable, Collection, Mapping

from ppdet_lite.storage.peers.ppdet import ppdet
from ppdet_lite.storage.peers.rules import Peer

PEERS: dict[str, Callable[[Mapping[str, tuple[int, ...]]], Peer]] = {"ppdet": ppdet}


def peer_of(names: Collection[str]) -> str | None:
    """Whose names a file of detector weights has; None if nobody's here."""
    return next((key for key, make in PEERS.items() if make({}).recognises(names)), None)
