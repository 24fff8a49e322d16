"""Conversion of other projects' detector weights into runs of this project, and back."""

from pathlib import Path
from typing import NamedTuple

from ppdet_lite.assembly.run_files import describe_checkpoint, write_run_files
from ppdet_lite.assembly.setup import (
    CLASSIFIER,
    build_uninitialized,
    detection_arrays,
    read_detector,
    state_shapes,
)
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.messages import join_with_or
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.coco_file import read_categories
from ppdet_lite.peers.dataset_classes import known_classes
from ppdet_lite.peers.files import PeerFile, read_peer_file
from ppdet_lite.peers.names import PEERS, find_peer
from ppdet_lite.peers.names.rules import convert_batch_norm_epsilon
from ppdet_lite.storage.checkpoint import save_checkpoint
from ppdet_lite.storage.pdparams import write_pdparams
from ppdet_lite.storage.state_dicts import without_wrapper
from ppdet_lite.storage.weights import match_weights


class Classes(NamedTuple):
    """The names and category ids of a detector's classes."""

    names: list[str]
    category_ids: list[int]


def checked_peer(name: str) -> str:
    """Return `name` if it is a project in `PEERS`; raise UserError otherwise."""
    if name not in PEERS:
        raise UserError(f"--from {name}: unknown project; choose {join_with_or(PEERS)}")
    return name


def convert_file(
    peer: str,
    config: Config,
    file: Path,
    folder: Path,
    annotations: Path | None = None,
    bn_epsilon: float | None = None,
) -> int:
    """Convert another project's detector into a run folder: config.yml, classes.json and checkpoints/best.

    Returns the number of arrays.

    bn_epsilon: epsilon of the file's frozen batch norms if it is not 1e-5; 0 for torchvision's COCO_V1 weights.

    Class names are read from the annotations (COCO JSON) or the file; by default they are COCO's for 80 classes and
    VOC's for 20. Raises UserError, listing the names, if an array of the file or of the config's model has no
    counterpart.
    """
    if (folder / "checkpoints").exists():
        raise UserError(f"{folder} already contains a run; choose another folder")
    read = read_peer_file(file)
    naming = PEERS[peer]({})
    arrays = without_wrapper(
        read.arrays, read.source, lambda names: bool(naming.find_classifier(names) or find_peer(names))
    )
    read = read._replace(arrays=arrays)
    classifier = naming.find_classifier(read.arrays)
    if classifier is None:
        other = find_peer(read.arrays)
        hint = f"use --from {other}, it is from {PEERS[other]({}).title}" if other else "check the file or --from"
        raise UserError(f"{file}: not a detector from {naming.title}: it has no classifier of a box head; {hint}")
    classes = _classes(read, annotations, naming.class_count(len(read.arrays[classifier])))
    model = build_uninitialized(config, classes.names)
    arrays = read.arrays
    if bn_epsilon is not None:
        if not any(name.endswith(".running_var") for name in arrays):
            raise UserError(f"{file}: has no batch norms with torch's names, to which --bn-epsilon applies; remove it")
        arrays = convert_batch_norm_epsilon(arrays, bn_epsilon)
    report = PEERS[peer](state_shapes(model)).to_ours(state_shapes(model), arrays)
    if not report.is_complete:
        raise UserError(f"{file}: its weights do not match the config's model: {report.summary()}")
    report.require_floating_point(read.source)
    meta = {
        "iteration": 0,
        "best": None,
        **describe_checkpoint(config, *classes),
        "converted_from": {"project": naming.title, "file": read.source},
    }
    save_checkpoint(folder / "checkpoints/best", {"model": report.matched}, meta)
    write_run_files(folder, config, *classes)
    return len(report.matched)


def write_peer_weights(peer: str, config: Config, weights: Path, file: Path) -> None:
    """Write trained weights of this project under another project's names, as a .pdparams file.

    Raises UserError for a model with weights that have no name there, and for a file that cannot be written.
    """
    read = read_detector(weights)
    if CLASSIFIER not in read.arrays:
        raise UserError(f"{read.source}: not a detector of this project: it has no array {CLASSIFIER}")
    names = read.meta.get("class_names") or ["?"] * (len(read.arrays[CLASSIFIER]) - 1)
    shapes = state_shapes(build_uninitialized(config, names))
    report = match_weights(shapes, detection_arrays(read))
    report.require_complete(read.source)
    naming = PEERS[peer](shapes)
    try:
        arrays = naming.to_theirs(report.matched)
    except KeyError as error:
        raise UserError(
            f"{read.source}: {naming.title} has no name for {error}; it does not have this model"
        ) from error
    write_pdparams(file, arrays)
    get_logger().info("%d arrays of %s written to %s", len(arrays), read.source, file)


def _classes(read: PeerFile, annotations: Path | None, count: int) -> Classes:
    """Return the classes of a file with `count` of them. Raises UserError if their names are unknown or not `count`."""
    known = known_classes(count)
    if annotations is not None:
        names, ids = read_categories(str(annotations))
        if read.class_names is not None:  # its order is that of the outputs
            if sorted(names) != sorted(read.class_names):
                raise UserError(
                    f"{annotations}: its classes ({', '.join(names[:5])}, ...) are not those of {read.source} "
                    f"({', '.join(read.class_names[:5])}, ...); leave out --classes"
                )
            names, ids = read.class_names, [ids[names.index(name)] for name in read.class_names]
    elif read.class_names is not None:
        names = read.class_names
        ids = known[1] if known is not None and names == known[0] else list(range(1, len(names) + 1))
    elif known is not None:
        names, ids = known
    else:
        raise UserError(f"{read.source}: has {count} classes without names; give --classes annotations.json")
    if len(names) != count:
        raise UserError(f"{read.source}: has {count} classes, but names for {len(names)}: {', '.join(names[:5])}, ...")
    return Classes(names, ids)
