"""Weights of other projects into runs of ours, and back."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle

from ppdet_lite import __version__
from ppdet_lite.assembly.setup import build_model, load_config, state_shapes
from ppdet_lite.config.checked import Config
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.known_classes import known_classes
from ppdet_lite.storage.checkpoint import save_checkpoint
from ppdet_lite.storage.files import write_json, write_text
from ppdet_lite.storage.pdparams import write_pdparams
from ppdet_lite.storage.peers import PEERS
from ppdet_lite.storage.weights import read_weights

Arrays = Mapping[str, np.ndarray]


class Classes(NamedTuple):
    """What a detector's classes are called."""

    names: list[str]
    category_ids: list[int]


def _ppdet_ways(config: Config) -> list[str]:
    """PaddleDetection resizes by cubic interpolation, does not pad for C4, and drops proposals below a pixel."""
    ways = ["data.preprocess.interpolation=cubic", "model.rpn.min_size=1.0"]
    if config["model"]["neck"] is None:
        ways.append("data.preprocess.stride=1")
    else:
        ways.append("model.rpn.train_limit_over=batch")
    if config["model"]["backbone"]["depth"] < 50:
        ways.append("model.backbone.project_stage_2=true")
    return ways


WAYS: dict[str, Callable[[Config], list[str]]] = {"ppdet": _ppdet_ways}
"""Per project: overrides under which a config of ours computes what theirs does."""


def peer_config(path: str | Path, peer: str, overrides: Sequence[str] = ()) -> Config:
    """A config with what another project does otherwise; the user's overrides have the last word."""
    ways = WAYS[peer](load_config(path, overrides))
    return load_config(path, [*ways, *overrides])


def convert(
    peer: str, config: Config, arrays: Arrays, source: str, folder: Path, classes: Classes | None = None
) -> None:
    """Write another project's detector as a run of ours: config.yml, classes.json and checkpoints/best.

    classes: None takes COCO's for 80 and VOC's for 20. Raises UserError, listing every name, unless each array of
    theirs has its place in the config's model and each of the model's is there.
    """
    if (folder / "checkpoints").exists():
        raise UserError(f"{folder} holds a run already; choose another folder")
    naming = PEERS[peer]({})
    if naming.classifier not in arrays:
        raise UserError(f"{source}: no detector of {naming.title}'s, it has no {naming.classifier}; see --from")
    classes = _settled(classes, len(arrays[naming.classifier]) - 1, source)
    model = build_model(config, classes.names, for_training=False)
    report = PEERS[peer](state_shapes(model)).to_ours(state_shapes(model), arrays)
    if not report.is_complete:
        raise UserError(f"{source}: weights of another model than {config['model'].place}: {report.summary()}")
    meta = {
        "iteration": 0,
        "best": None,
        "class_names": classes.names,
        "category_ids": classes.category_ids,
        "config": config.dump(),
        "versions": {"ppdet_lite": __version__, "paddle": paddle.__version__},
        "converted_from": {"project": naming.title, "file": source},
    }
    save_checkpoint(folder / "checkpoints/best", {"model": report.matched}, meta)
    write_text(folder / "config.yml", config.dump())
    write_json(folder / "classes.json", [{"id": i, "name": n} for n, i in zip(*classes, strict=True)])
    get_logger().info("%d arrays of %s converted into %s", len(report.matched), source, folder)


def write_peer_weights(peer: str, config: Config, weights: Path, file: Path) -> None:
    """Write trained weights of ours in another project's naming, as a .pdparams file.

    Raises UserError for a model that they have no names for, and a file that cannot be written.
    """
    read = read_weights(weights)
    names = read.meta.get("class_names") or ["?"] * (len(read.arrays["predictor.classify.bias"]) - 1)
    shapes = state_shapes(build_model(config, names, for_training=False))
    naming = PEERS[peer](shapes)
    try:
        arrays = naming.to_theirs({name: read.arrays[name] for name in shapes})
    except KeyError as error:
        raise UserError(f"{read.source}: {naming.title} has no name for {error}, or the weights lack it") from error
    write_pdparams(file, arrays)
    get_logger().info("%d arrays of %s written to %s", len(arrays), read.source, file)


def _settled(classes: Classes | None, count: int, source: str) -> Classes:
    if classes is None:
        known = known_classes(count)
        if known is None:
            raise UserError(f"{source}: has {count} classes and no names; give --classes annotations.json")
        return Classes(*known)
    if len(classes.names) != count:
        raise UserError(f"{source}: has {count} classes, the names given are {len(classes.names)}")
    return classes
