"""What training starts from: weights of a classifier or a detector, ours or another project's."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ppdet_lite.assembly.class_layers import CLASSIFIERS, match_classes
from ppdet_lite.assembly.setup import TRAINING_ONLY, state_shapes
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.peers.files import read_peer_file
from ppdet_lite.peers.names import PEERS, peer_of
from ppdet_lite.peers.names.classifiers import caffe2_classifier, ppdet_classifier
from ppdet_lite.storage.download import resolve_weights
from ppdet_lite.storage.weights import LoadReport, Weights, match_weights, read_weights

TRUNK = ("backbone.", "box_head.res5.")  # what a classifier brings; a C4 detector has stage 5 in its head

OTHERWISE = "Take weights of this backbone, or pretrain_weights: null to start at random"


def load_pretrained(
    model: FasterRCNN,
    spec: str,
    class_names: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
) -> LoadReport:
    """Start a model from `pretrain_weights`: a whole detector, or a classifier whose trunk is the backbone's.

    Names may be ours, Paddle's and torchvision's ResNets', PaddleDetection's, Caffe2's (detectron2's MSRA files), or
    those of the detectors that can be converted; the naming under which most arrays fit counts.

    class_names: the model's classes; where a detector's own are known and others, class layers are carried over by
    name, those in class_map under their new one (see `match_classes`).

    What does not fit is reported name by name; nothing fitting at all is a UserError.
    """
    weights = _read(resolve_weights(spec))
    wanted = state_shapes(model)
    arrays = _for_classes(weights, model, class_names, class_map)
    arrays = {name: array for name, array in arrays.items() if name in wanted or not name.startswith(TRAINING_ONLY)}
    report = max(_readings(model, wanted, arrays), key=lambda reading: len(reading.matched))
    try:
        report.require_any(weights.source)
    except UserError as error:
        raise UserError(f"{error}. {OTHERWISE}") from None
    if weights.meta.get("class_names") is None and any(name.startswith(CLASSIFIERS) for name in report.matched):
        get_logger().warning(
            "%s names no classes: the layers of its classes, which are as many, are taken in their order",
            weights.source,
        )
    report = _with_teacher(report, wanted)
    get_logger().info("pretrained weights %s: %s", weights.source, report.summary())
    lacking = [name for name in (*report.missing, *(each.name for each in report.mis_shaped)) if _is_pretrained(name)]
    if lacking:
        get_logger().warning(
            "%s lacks %d arrays of the backbone, such as %s: they start at random. Is it for another depth or norm? %s",
            *(weights.source, len(lacking), lacking[0], OTHERWISE),
        )
    model.set_state_dict({**model.state_dict(), **report.matched})
    return report


def _read(path: Path) -> Weights:
    if path.suffix in (".pth", ".pt", ".pkl"):
        read = read_peer_file(path)
        meta = {} if read.class_names is None else {"class_names": read.class_names}
        return Weights(read.arrays, meta, read.source)
    return read_weights(path)


def _readings(
    model: FasterRCNN, wanted: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]
) -> Iterator[LoadReport]:
    """How the arrays fit, under each naming there is."""
    yield match_weights(wanted, arrays)
    trunk = {name: shape for name, shape in wanted.items() if name.startswith(TRUNK)}

    def in_trunk(name: str) -> str:
        own = model.backbone.upstream_name(name)
        return f"box_head.{own}" if f"box_head.{own}" in trunk else f"backbone.{own}"

    yield match_weights(trunk, arrays, in_trunk)
    for naming in (ppdet_classifier(trunk), caffe2_classifier(trunk)):
        yield naming.to_ours(trunk, arrays)
    if (peer := peer_of(arrays)) is not None:
        yield PEERS[peer](wanted).to_ours(wanted, arrays)


def _for_classes(
    weights: Weights, model: FasterRCNN, class_names: Sequence[str] | None, class_map: Mapping[str, str] | None
) -> dict[str, np.ndarray]:
    """The arrays of weights with class layers for these classes; the log tells which came along."""
    theirs = weights.meta.get("class_names")
    if theirs is None or class_names is None or (theirs == list(class_names) and not class_map):
        if class_map:
            raise UserError(f"pretrain_class_map: {weights.source} names no classes; leave the map out")
        return weights.arrays
    fresh = {name: value.numpy() for name, value in model.state_dict().items()}
    match = match_classes(weights.arrays, theirs, class_names, fresh, class_map)
    get_logger().info(
        "%s is of other classes: kept by name: %s; starting anew: %s",
        *(weights.source, ", ".join(match.kept) or "none", ", ".join(match.new) or "none"),
    )
    return match.arrays


def _is_pretrained(name: str) -> bool:
    """Whether pretrained weights are expected to have an array: the trunk's, but for what moves its samples."""
    return name.removeprefix(TRAINING_ONLY).startswith(TRUNK) and ".offset." not in name


def _with_teacher(report: LoadReport, wanted: Mapping[str, tuple[int, ...]]) -> LoadReport:
    """Where an R-CNN teacher has a backbone of its own, it starts from the same weights."""
    copies = {
        f"{TRAINING_ONLY}{name}": array
        for name, array in report.matched.items()
        if wanted.get(f"{TRAINING_ONLY}{name}") == array.shape
    }
    missing = [name for name in report.missing if name not in copies]
    return report._replace(matched={**copies, **report.matched}, missing=missing)
