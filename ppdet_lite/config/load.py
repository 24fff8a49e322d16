"""From config files and command-line overrides to one tree of values, each with its origin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppdet_lite.config.merge import apply_overrides, read
from ppdet_lite.config.references import resolve
from ppdet_lite.config.yaml_nodes import Node


def load_tree(path: str | Path, overrides: Sequence[str] = ()) -> Node:
    """The unchecked tree of a config file: the file over its _base_ files, overrides over that, then ${references}.

    Overrides are texts such as "model.neck.norm=gn". Raises UserError with the file and line of the first mistake.
    """
    return resolve(apply_overrides(read(path), overrides))
