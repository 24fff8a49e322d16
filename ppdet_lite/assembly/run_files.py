"""What a run's folder and its checkpoints say of themselves, for whoever uses them later."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import paddle

from ppdet_lite import __version__
from ppdet_lite.config.checked_config import Config
from ppdet_lite.storage.files import write_json, write_text


def describe_checkpoint(config: Config, class_names: Sequence[str], category_ids: Sequence[int]) -> dict[str, Any]:
    """The part of a checkpoint's meta by which its model can be built and its classes named."""
    return {
        "class_names": list(class_names),
        "category_ids": list(category_ids),
        "config": config.dump(),
        "versions": {"ppdet_lite": __version__, "paddle": paddle.__version__},
    }


def describe_run(folder: Path, config: Config, class_names: Sequence[str], category_ids: Sequence[int]) -> None:
    """Write config.yml and classes.json. Raises UserError when they cannot be written."""
    write_text(folder / "config.yml", config.dump())
    ids_and_names = zip(category_ids, class_names, strict=True)
    write_json(folder / "classes.json", [{"id": category, "name": name} for category, name in ids_and_names])
