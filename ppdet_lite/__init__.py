"""Faster R-CNN on PaddlePaddle, exact and small.

Importing the package tunes the process for Paddle (see core/runtime.py) and loads nothing heavy;
`ppdet_lite.load_config` and `ppdet_lite.build_model` bring in the rest on first use.
"""

from typing import Any

from ppdet_lite.core import runtime

__version__ = "0.1.0"
__all__ = ["__version__", "build_model", "load_config"]

runtime.prepare()


def __getattr__(name: str) -> Any:
    """Fetch `load_config` or `build_model` from ppdet_lite.api, the first time either is asked for."""
    if name not in ("load_config", "build_model"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with runtime.quiet_import():
        from ppdet_lite import api
    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
