"""Other projects' names for the weights of a detector.

`PEERS` has a function each: from the names and shapes of a model of ours to its `Peer` (see `rules`).
"""

from collections.abc import Callable, Collection

from ppdet_lite.peers.names.detectron2 import detectron2
from ppdet_lite.peers.names.mmdet import mmdet
from ppdet_lite.peers.names.ppdet import ppdet
from ppdet_lite.peers.names.rules import Peer, Shapes
from ppdet_lite.peers.names.torchvision import torchvision

PEERS: dict[str, Callable[[Shapes], Peer]] = {
    "ppdet": ppdet,
    "torchvision": torchvision,
    "mmdet": mmdet,
    "mmdet-caffe": mmdet,  # the same names, another network: see peers/config_differences.py
    "detectron2": detectron2,
}


def peer_of(names: Collection[str]) -> str | None:
    """Whose names a file of detector weights has; None if nobody's here."""
    return next((key for key, make in PEERS.items() if make({}).recognises(names)), None)
