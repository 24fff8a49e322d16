"""Loads config files and command-line overrides into one tree of values, each with its origin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ppdet_lite.config.merge import apply_overrides, read_with_bases
from ppdet_lite.config.references import resolve
from ppdet_lite.config.yaml_nodes import Node


def load_tree(path: str | Path, overrides: Sequence[str] = ()) -> Node:
    """Return the unchecked tree of a config file merged over its _base_ files, after overrides and ${references}.

    An override is a string such as "model.neck.norm=gn". Raises UserError with file and line of the first mistake.
    """
    return resolve(apply_overrides(read_with_bases(path), overrides))
