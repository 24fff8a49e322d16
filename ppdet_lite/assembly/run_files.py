"""Metadata in run folders and checkpoints: config, classes and versions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle

from ppdet_lite import __version__
from ppdet_lite.config.checked_config import Config
from ppdet_lite.storage.files import write_json, write_text


def describe_checkpoint(config: Config, class_names: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """Return the part of a checkpoint's metadata that is needed to build its model and name its classes."""
    return {
        "class_names": list(class_names),
        "category_ids": list(category_ids),
        "config": config.dump(),
        "versions": {"ppdet_lite": __version__, "paddle": paddle.__version__},
    }


def write_run_files(folder: Path, config: Config, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
    """Write config.yml and classes.json into a run folder. Raises UserError if they cannot be written."""
    write_text(folder / "config.yml", config.dump())
    ids_and_names = zip(category_ids, class_names, strict=True)
    write_json(folder / "classes.json", [{"id": category, "name": name} for category, name in ids_and_names])
