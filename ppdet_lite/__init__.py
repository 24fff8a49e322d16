"""Faster R-CNN on PaddlePaddle, exact and small.

Importing the package configures the process for Paddle (see core/runtime.py) and loads no heavy dependency. The
public names import the rest of the package on first use:

Detector                           runs a trained or exported model: images in, detections out
load_config, build_model           read a YAML file into a checked config; build the model that it describes
deform_conv2d, deform_roi_pool     the deformable operators
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ppdet_lite.core import runtime

if TYPE_CHECKING:  # the public names, for type checkers and editors
    from ppdet_lite.assembly.setup import build_model, load_config
    from ppdet_lite.deployment.detector import Detector
    from ppdet_lite.ops import deform_conv2d, deform_roi_pool

__version__ = "0.1.0"
__all__ = ["Detector", "__version__", "build_model", "deform_conv2d", "deform_roi_pool", "load_config"]

_MODULE_OF = {
    "Detector": "ppdet_lite.deployment.detector",
    "build_model": "ppdet_lite.assembly.setup",
    "load_config": "ppdet_lite.assembly.setup",
    "deform_conv2d": "ppdet_lite.ops",
    "deform_roi_pool": "ppdet_lite.ops",
}

runtime.prepare()


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first access."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with runtime.quiet_import():
        return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
