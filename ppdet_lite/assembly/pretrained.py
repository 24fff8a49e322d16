"""Loading of pretrained weights: a classifier or a detector, of this project or of another one."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ppdet_lite.assembly.class_layers import ClassMatch, is_classifier, match_classes, with_class_count
from ppdet_lite.assembly.converted_settings import MODEL, PIXELS, warn_about_conversion
from ppdet_lite.assembly.setup import TRAINING_ONLY, state_arrays, state_shapes
from ppdet_lite.assembly.zoo import initial_weights
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.peers.files import read_peer_file
from ppdet_lite.peers.names import PEERS, find_peer
from ppdet_lite.peers.names.classifiers import caffe2_classifier, ppdet_classifier
from ppdet_lite.storage.state_dicts import log_prefix, prefix_candidates
from ppdet_lite.storage.weights import LoadReport, Weights, match_weights, read_weights

TRUNK = ("backbone.", "box_head.res5.")  # the weights in a classifier; a C4 detector has stage 5 in its box head
REMEDY = "Use weights of this backbone, or pretrain_weights: null for random initialization"


def load_pretrained(
    model: FasterRCNN,
    spec: str,
    class_names: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
    config: Config | None = None,
) -> LoadReport:
    """Load `pretrain_weights` into a model: a whole detector, or a classifier whose layers the backbone shares.

    spec: a path, https://...#sha256=..., or zoo:NAME.

    The names in the file may be those of this project, of Paddle's or torchvision's ResNets, of PaddleDetection, of
    Caffe2 (detectron2's MSRA files), or of a detector in `PEERS`. The naming under which most arrays fit is used.

    class_names: the model's classes. If the file is a detector with other class names, the outputs of shared classes
    are copied by name, after class_map renamed those in the file (see `match_classes`).

    config: the model's, for a warning if converted weights were trained with other settings.

    Arrays that do not fit are logged by name. Raises UserError if no array fits.
    """
    weights = _read(initial_weights(spec))
    if config is not None:
        warn_about_conversion(config, weights, (*MODEL, *PIXELS))
    wanted = state_shapes(model)
    source_classes = weights.meta.get("class_names")
    has_other_classes = None not in (source_classes, class_names) and (source_classes != list(class_names) or class_map)
    if class_map and not has_other_classes:
        raise UserError(f"pretrain_class_map: {weights.source} has no class names; remove the map")
    file_shapes, agnostic = wanted, model.predictor.class_agnostic
    if has_other_classes:
        file_shapes = with_class_count(wanted, len(class_names), len(source_classes), agnostic)
    report = _best_report(model, file_shapes, weights)
    try:
        report.require_any(weights.source)
    except UserError as error:
        raise UserError(f"{error}. {REMEDY}") from None
    if weights.meta.get("class_names") is None and any(is_classifier(name) for name in report.matched):
        message = "%s has no class names: its class layers have the right number of classes and are used in their order"
        get_logger().warning(message, weights.source)
    match = None
    if has_other_classes:
        initial = state_arrays(model)
        match = match_classes(report.matched, source_classes, class_names, initial, class_map, agnostic)
        report = report._replace(matched=match.arrays)
    report = _copy_to_stages(_copy_to_teacher(report, wanted), wanted)
    _log_report(weights.source, report, match)
    not_loaded = (*report.missing, *(array.name for array in report.mismatched))
    if unfilled := [name for name in not_loaded if _is_pretrained(name)]:
        message = (
            "%s lacks %d backbone arrays, such as %s, now randomly initialized. Is it for another depth or norm? %s"
        )
        get_logger().warning(message, weights.source, len(unfilled), unfilled[0], REMEDY)
    model.set_state_dict({**model.state_dict(), **report.matched})
    return report


def _read(path: Path) -> Weights:
    if path.suffix in (".pth", ".pt", ".pkl"):
        read = read_peer_file(path)
        meta = {} if read.class_names is None else {"class_names": read.class_names}
        return Weights(read.arrays, meta, read.source)
    return read_weights(path)


def _best_report(model: FasterRCNN, wanted: Mapping[str, tuple[int, ...]], weights: Weights) -> LoadReport:
    """Return the report with the most matched arrays, of all namings and all removals of a prefix of every name."""
    best, best_prefix = None, ""
    for prefix, arrays in prefix_candidates(weights.arrays):
        arrays = {name: array for name, array in arrays.items() if name in wanted or not name.startswith(TRAINING_ONLY)}
        for report in _reports_by_naming(model, wanted, arrays):
            if best is None or len(report.matched) > len(best.matched):
                best, best_prefix = report, prefix
    log_prefix(best_prefix, weights.source)
    return best


def _reports_by_naming(
    model: FasterRCNN, wanted: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]
) -> Iterator[LoadReport]:
    """Yield a report of how the arrays fit the model for each supported naming."""
    yield match_weights(wanted, arrays)
    trunk = {name: shape for name, shape in wanted.items() if name.startswith(TRUNK)}

    def name_in_trunk(name: str) -> str:
        stem = model.backbone.upstream_name(name)
        return f"box_head.{stem}" if f"box_head.{stem}" in trunk else f"backbone.{stem}"

    yield match_weights(trunk, arrays, name_in_trunk)
    for naming in (ppdet_classifier(trunk), caffe2_classifier(trunk)):
        yield naming.to_ours(trunk, arrays)
    if (peer := find_peer(arrays)) is not None:
        yield PEERS[peer](wanted).to_ours(wanted, arrays)


def _log_report(source: str, report: LoadReport, match: ClassMatch | None) -> None:
    """Log what was loaded. Class layers with randomly initialized outputs do not count as matched."""
    if match is not None and match.layers:
        copied = ", ".join([*(f"{ours} from {theirs}" for ours, theirs in match.copied.items()), "background"])
        message = "%s has other classes: outputs copied: %s; randomly initialized: %s (in %s)"
        get_logger().info(message, source, copied, ", ".join(match.new) or "none", ", ".join(match.layers))
        incomplete = match.layers if match.new else []
        report = report._replace(matched={n: array for n, array in report.matched.items() if n not in incomplete})
    get_logger().info("pretrained weights %s: %s", source, report.summary())


def _is_pretrained(name: str) -> bool:
    """Return whether pretrained weights should contain an array: those of the trunk except deformable offsets."""
    return name.removeprefix(TRAINING_ONLY).startswith(TRUNK) and ".offset." not in name


def _copy_to_stages(report: LoadReport, wanted: Mapping[str, tuple[int, ...]]) -> LoadReport:
    """Use matched arrays of the last stage's head for the earlier stages of a cascade that the file lacks.

    So a cascade starts from a Faster R-CNN, and one with stage 5 of a ResNet in its heads from a classifier.
    """
    copies = {}
    for name in wanted.keys() - report.matched.keys():
        source = report.matched.get(re.sub(r"^earlier\.\d+\.", "", name))
        if source is not None and source.shape == wanted[name]:
            copies[name] = source
    missing = [entry for entry in report.missing if entry.partition(" ")[0] not in copies]
    return report._replace(matched={**report.matched, **copies}, missing=missing)


def _copy_to_teacher(report: LoadReport, wanted: Mapping[str, tuple[int, ...]]) -> LoadReport:
    """Use the matched arrays for the R-CNN teacher of mimicking too, if it has its own backbone."""
    copies = {
        f"{TRAINING_ONLY}{name}": array
        for name, array in report.matched.items()
        if wanted.get(f"{TRAINING_ONLY}{name}") == array.shape
    }
    missing = [name for name in report.missing if name not in copies]
    return report._replace(matched={**copies, **report.matched}, missing=missing)
