"""Weights of other projects into runs of ours, and back."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ppdet_lite.assembly.run_files import describe_checkpoint, describe_run
from ppdet_lite.assembly.setup import build_unfilled, detection_arrays, load_config, state_shapes
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.messages import either
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.coco_file import read_categories
from ppdet_lite.peers.config_differences import DIFFERENCES
from ppdet_lite.peers.dataset_classes import known_classes
from ppdet_lite.peers.files import PeerFile, read_peer_file
from ppdet_lite.peers.names import PEERS, peer_of
from ppdet_lite.peers.names.rules import with_our_epsilon
from ppdet_lite.storage.checkpoint import save_checkpoint
from ppdet_lite.storage.pdparams import write_pdparams
from ppdet_lite.storage.weights import match_weights, read_weights


class Classes(NamedTuple):
    """What a detector's classes are called."""

    names: list[str]
    category_ids: list[int]


def peer_config(path: str | Path, peer: str, overrides: Sequence[str] = ()) -> Config:
    """A config with what another project does otherwise; the user's overrides have the last word."""
    differences = DIFFERENCES[peer](load_config(path, overrides))
    return load_config(path, [*differences, *overrides])


def known_peer(name: str) -> str:
    """A project that can be converted from. Raises UserError for another."""
    if name not in PEERS:
        raise UserError(f"--from {name}: not known; choose {either(PEERS)}")
    return name


def convert_file(
    peer: str,
    config: Config,
    file: Path,
    folder: Path,
    annotations: Path | None = None,
    bn_epsilon: float | None = None,
) -> None:
    """Write another project's detector as a run of ours: config.yml, classes.json and checkpoints/best.

    bn_epsilon: that of their frozen batch norms where it is not 1e-5; 0 for torchvision's published COCO_V1 weights.

    Class names come from the file or the annotations (COCO JSON), else they are COCO's for 80 classes, VOC's for 20.
    Raises UserError, listing every name, unless each array of theirs has its place in the config's model and each of
    the model's is there.
    """
    if (folder / "checkpoints").exists():
        raise UserError(f"{folder} holds a run already; choose another folder")
    read = read_peer_file(file)
    naming = PEERS[peer]({})
    if naming.classifier not in read.arrays:
        other = peer_of(read.arrays)
        hint = f"it is {PEERS[other]({}).title}'s: --from {other}" if other else f"has it {naming.title}'s weights?"
        raise UserError(f"{file}: no detector of {naming.title}'s, it has no {naming.classifier}; {hint}")
    classes = _classes(read, annotations, naming.class_count(len(read.arrays[naming.classifier])))
    model = build_unfilled(config, classes.names)
    arrays = read.arrays if bn_epsilon is None else with_our_epsilon(read.arrays, bn_epsilon)
    report = PEERS[peer](state_shapes(model)).to_ours(state_shapes(model), arrays)
    if not report.is_complete:
        raise UserError(f"{file}: weights of another model than the config's: {report.summary()}")
    meta = {
        "iteration": 0,
        "best": None,
        **describe_checkpoint(config, *classes),
        "converted_from": {"project": naming.title, "file": read.source},
    }
    save_checkpoint(folder / "checkpoints/best", {"model": report.matched}, meta)
    describe_run(folder, config, *classes)
    get_logger().info("%d arrays of %s converted into %s", len(report.matched), file, folder)
    get_logger().info("evaluate it: python tools/eval.py -c %s -o weights=%s", folder / "config.yml", folder)


def write_peer_weights(peer: str, config: Config, weights: Path, file: Path) -> None:
    """Write trained weights of ours in another project's naming, as a .pdparams file.

    Raises UserError for a model that they have no names for, and a file that cannot be written.
    """
    read = read_weights(weights)
    if "predictor.classify.bias" not in read.arrays:
        raise UserError(f"{read.source}: no detector of ours, it has no predictor.classify.bias")
    names = read.meta.get("class_names") or ["?"] * (len(read.arrays["predictor.classify.bias"]) - 1)
    shapes = state_shapes(build_unfilled(config, names))
    report = match_weights(shapes, detection_arrays(read))
    report.require_complete(read.source)
    naming = PEERS[peer](shapes)
    try:
        arrays = naming.to_theirs(report.matched)
    except KeyError as error:
        raise UserError(f"{read.source}: {naming.title} has no name for {error}, it cannot take this model") from error
    write_pdparams(file, arrays)
    get_logger().info("%d arrays of %s written to %s", len(arrays), read.source, file)


def _classes(read: PeerFile, annotations: Path | None, count: int) -> Classes:
    known = known_classes(count)
    if annotations is not None:
        names, ids = read_categories(str(annotations))
    elif read.class_names is not None:
        names = read.class_names
        ids = known[1] if known is not None and names == known[0] else list(range(1, len(names) + 1))
    elif known is not None:
        names, ids = known
    else:
        raise UserError(f"{read.source}: has {count} classes and no names; give --classes annotations.json")
    if len(names) != count:
        raise UserError(f"{read.source}: has {count} classes, but names for {len(names)}: {', '.join(names[:5])}, ...")
    return Classes(names, ids)
