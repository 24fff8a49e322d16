"""Configs, from YAML file to checked tree: `check(load_tree(path, overrides), Recipe)`.

load_tree   the file over its _base_ files, the overrides over that, then ${references}; each value has its origin
check       everything against constructor signatures; every mistake is told at once, nothing is built
Config      what check returns: a read-only mapping for `ppdet_lite.config.registry.build`
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppdet_lite.config.check import check
from ppdet_lite.config.checked import Config
from ppdet_lite.config.merge import apply_overrides, read
from ppdet_lite.config.references import resolve
from ppdet_lite.config.yaml_nodes import Node

__all__ = ["Config", "Node", "check", "load_tree"]


def load_tree(path: str | Path, overrides: Sequence[str] = ()) -> Node:
    """The unchecked tree of a config file, with overrides such as "model.neck.norm=gn" and all references resolved.

    Raises UserError with the file and line of the first mistake.
    """
    return resolve(apply_overrides(read(path), overrides))
