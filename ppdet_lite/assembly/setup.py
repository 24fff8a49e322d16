"""From a config to the objects that it describes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import paddle

from ppdet_lite.assembly.class_layers import match_classes
from ppdet_lite.assembly.recipe import Recipe
from ppdet_lite.config.check import check
from ppdet_lite.config.checked import Config
from ppdet_lite.config.load import load_tree
from ppdet_lite.config.registry import build
from ppdet_lite.core.errors import Misfit, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.coco import CocoDataset
from ppdet_lite.data.transforms import Preprocess
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.storage.download import resolve_weights
from ppdet_lite.storage.peers import peer_of
from ppdet_lite.storage.weights import LoadReport, Weights, match_weights, read_weights

TRAINING_ONLY = "mimic."  # how the names of weights begin that a checkpoint has and a detector does without


class Detector(NamedTuple):
    """A trained model with what is needed to use it."""

    model: FasterRCNN  # in evaluation mode
    class_names: list[str]
    category_ids: list[int]  # class -> id in the data it was trained on
    preprocess: Preprocess
    source: str  # the weights it was read from


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config; `overrides` are "a.b=value" texts. Raises UserError with one line per mistake."""
    return check(load_tree(path, overrides), Recipe)


def run_folder(config: Config, config_path: str | Path) -> Path:
    """Where a run of a config file writes: `<output>/<name of the file>`."""
    return Path(config["output"]) / Path(config_path).stem


def build_dataset(
    config: Config, split: Literal["train", "val"], class_names: Sequence[str] | None = None
) -> CocoDataset:
    """Read the annotations of a split; its classes are matched by name with `class_names` where given."""
    return build(config["data"][split], class_names=class_names)


def log_notes(dataset: CocoDataset) -> None:
    """Log what was mended, dropped or noticed in a dataset's annotations."""
    for note in dataset.notes:
        get_logger().info("%s", note)


def build_model(config: Config, class_names: Sequence[str] | None = None, for_training: bool = True) -> FasterRCNN:
    """The model of a config with fresh weights, seeded; classes are those of the training annotations by default.

    for_training: with the parts that only training needs.
    """
    if class_names is None:
        class_names = build_dataset(config, "train").class_names
    paddle.seed(config["runtime"]["seed"])
    try:
        model = FasterRCNN.from_config(config["model"], len(class_names), for_training)
    except Misfit as error:
        place = config.origin(f"model.{error.key}")
        raise UserError(f"{place}: model.{error.key}: {error.reason}") from error
    except ValueError as error:  # a combination that no type hint can express
        raise UserError(f"{config['model'].place}: {error}") from error
    stride = config["data"]["preprocess"]["stride"]
    if stride % model.neck.size_divisor:
        raise UserError(
            f"{config['data']['preprocess'].place}: stride {stride} is no multiple of {model.neck.size_divisor}, "
            "which the model's coarsest feature map needs"
        )
    return model


def load_detector(config: Config) -> Detector:
    """The trained model that `weights:` names, complete or not at all; its class names come with the weights."""
    if config["weights"] is None:
        raise UserError("no weights given; add -o weights=output/NAME or another checkpoint, .safetensors or .pdparams")
    weights = read_weights(Path(config["weights"]))
    if (peer := peer_of(weights.arrays)) is not None:
        raise UserError(
            f"{weights.source}: another project's weights; convert them: "
            f"python tools/convert_weights.py --from {peer} -c CONFIG {weights.source} FOLDER"
        )
    if "class_names" in weights.meta:
        class_names, category_ids = weights.meta["class_names"], weights.meta["category_ids"]
    else:  # a bare weights file: the order of the training annotations is the only source
        dataset = build_dataset(config, "train")
        class_names, category_ids = dataset.class_names, dataset.category_ids.tolist()
        get_logger().warning("%s names no classes; taking those of %s", weights.source, dataset.file)
    model = build_model(config, class_names, for_training=False)
    arrays = {name: array for name, array in weights.arrays.items() if not name.startswith(TRAINING_ONLY)}
    report = match_weights(state_shapes(model), arrays)
    report.require_complete(weights.source)
    model.set_state_dict(report.matched)
    model.eval()
    return Detector(model, class_names, category_ids, build(config["data"]["preprocess"]), weights.source)


def load_pretrained(
    model: FasterRCNN,
    spec: str,
    class_names: Sequence[str] | None = None,
    class_map: Mapping[str, str] | None = None,
) -> LoadReport:
    """Start a model from `pretrain_weights`: a whole detector, or a classifier whose trunk is the backbone's.

    class_names: the model's classes; where a detector's own are known and others, class layers are carried over by
    name, those in class_map under their new one (see `match_classes`).

    What does not fit is reported name by name; nothing fitting at all is a UserError.
    """
    weights = read_weights(resolve_weights(spec))
    wanted = state_shapes(model)
    arrays = _for_classes(weights, model, class_names, class_map)
    arrays = {name: array for name, array in arrays.items() if name in wanted or not name.startswith(TRAINING_ONLY)}
    as_detector = match_weights(wanted, arrays)
    as_backbone = match_weights(
        {name: shape for name, shape in wanted.items() if name.startswith("backbone.")},
        arrays,
        lambda name: f"backbone.{model.backbone.upstream_name(name)}",
    )
    report = max(as_detector, as_backbone, key=lambda candidate: len(candidate.matched))
    report.require_any(weights.source)
    report = _with_teacher(report, wanted)
    get_logger().info("pretrained weights %s: %s", weights.source, report.summary())
    lacking = [name for name in (*report.missing, *(each.name for each in report.mis_shaped)) if _is_pretrained(name)]
    if lacking:
        get_logger().warning(
            "%s lacks %d arrays of the backbone, such as %s: they start at random. Is it for another depth or norm?",
            *(weights.source, len(lacking), lacking[0]),
        )
    model.set_state_dict({**model.state_dict(), **report.matched})
    return report


def _for_classes(
    weights: Weights, model: FasterRCNN, class_names: Sequence[str] | None, class_map: Mapping[str, str] | None
) -> dict[str, np.ndarray]:
    """The arrays of weights with class layers for these classes; the log tells which came along."""
    theirs = weights.meta.get("class_names")
    if theirs is None or class_names is None or (theirs == list(class_names) and not class_map):
        if class_map:
            raise UserError(f"pretrain_class_map: {weights.source} names no classes")
        return weights.arrays
    fresh = {name: value.numpy() for name, value in model.state_dict().items()}
    match = match_classes(weights.arrays, theirs, class_names, fresh, class_map)
    get_logger().info(
        "%s is of other classes: kept by name: %s; starting anew: %s",
        *(weights.source, ", ".join(match.kept) or "none", ", ".join(match.new) or "none"),
    )
    return match.arrays


def _is_pretrained(name: str) -> bool:
    """Whether pretrained weights are expected to have an array: the backbone's, but for what moves its samples."""
    return name.removeprefix(TRAINING_ONLY).startswith("backbone.") and ".offset." not in name


def _with_teacher(report: LoadReport, wanted: Mapping[str, tuple[int, ...]]) -> LoadReport:
    """Where an R-CNN teacher has a backbone of its own, it starts from the same weights."""
    copies = {
        f"{TRAINING_ONLY}{name}": array
        for name, array in report.matched.items()
        if wanted.get(f"{TRAINING_ONLY}{name}") == array.shape
    }
    missing = [name for name in report.missing if name not in copies]
    return report._replace(matched={**copies, **report.matched}, missing=missing)


def use_device(config: Config) -> str:
    """Choose the device that `runtime.device` names. Raises UserError when there is no such device."""
    wanted = config["runtime"]["device"]
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if wanted == "gpu" and not has_gpu:
        reason = "sees no GPU" if paddle.is_compiled_with_cuda() else "is a CPU build; install paddlepaddle-gpu"
        raise UserError(f"{config.origin('runtime.device')}: runtime.device: gpu, but this Paddle {reason}")
    return paddle.set_device("gpu" if has_gpu and wanted != "cpu" else "cpu")


def state_shapes(model: FasterRCNN) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer by name."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
