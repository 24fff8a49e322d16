"""Weight names of other projects' detectors.

`PEERS` has one function per project. From the names and shapes of a model's weights it returns a `Peer` (see `rules`).
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
    "mmdet-caffe": mmdet,  # the same names for another network, see peers/config_differences.py
    "detectron2": detectron2,
}


def find_peer(names: Collection[str]) -> str | None:
    """Return the key in PEERS of the project whose detector has these weight names, or None."""
    return next((key for key, make in PEERS.items() if make({}).matches(names)), None)
