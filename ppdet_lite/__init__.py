"""Faster R-CNN on PaddlePaddle, exact and small.

Importing the package tunes the process for Paddle (see core/runtime.py) and loads nothing heavy; what it offers
brings in the rest on first use:

Detector                           a trained or exported model, images in and detections out
load_config, build_model           from a YAML file to a checked config, and to the model that it describes
deform_conv2d, deform_roi_pool     the operators
"""

from importlib import import_module
from typing import Any

from ppdet_lite.core import runtime

__version__ = "0.1.0"
__all__ = ["Detector", "__version__", "build_model", "deform_conv2d", "deform_roi_pool", "load_config"]

_HOME = {
    "Detector": "ppdet_lite.deployment.detector",
    "build_model": "ppdet_lite.assembly.setup",
    "load_config": "ppdet_lite.assembly.setup",
    "deform_conv2d": "ppdet_lite.ops",
    "deform_roi_pool": "ppdet_lite.ops",
}

runtime.prepare()


def __getattr__(name: str) -> Any:
    """Fetch one of the names above from where it lives, when it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with runtime.quiet_import():
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
