"""Construction of datasets and models from a checked config."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import paddle

from ppdet_lite.assembly.recipe import Recipe
from ppdet_lite.config.check import check
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.load import load_tree
from ppdet_lite.config.merge import COMMAND_LINE
from ppdet_lite.config.registry import build, errors_located_at
from ppdet_lite.core.errors import IncompatibleArguments, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.evaluation_checks import evaluation_problems, measurable_metrics
from ppdet_lite.data.annotations.problems import raise_if_refused
from ppdet_lite.data.annotations.training_checks import training_problems
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.peers.config_differences import DIFFERENCES, IN_ALL_PROJECTS
from ppdet_lite.peers.names import find_peer
from ppdet_lite.peers.zoo import find_detector, is_zoo
from ppdet_lite.storage.state_dicts import without_wrapper
from ppdet_lite.storage.weights import Weights, read_weights

CLASSIFIER = "predictor.classify.bias"  # a weight that every detector has, with an entry per class and background
TRAINING_ONLY = "mimic."  # prefix of the weights in a checkpoint that detection does not use


class TrainedModel(NamedTuple):
    """A trained model with its classes and preprocessing."""

    model: FasterRCNN  # in evaluation mode
    class_names: list[str]
    category_ids: list[int]  # class index -> category id in the training data
    preprocess: Preprocess
    source: str  # path of the weights


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config; `overrides` are "a.b=value" strings. Raises UserError with one line per mistake.

    path: a file, the name of a recipe, or "zoo:NAME" for the config of published weights, from which training starts.
    """
    if is_zoo(path):
        entry = find_detector(path)
        start = f"pretrain_weights={json.dumps(entry.spec)}"  # quoted: YAML requires it for a value with a colon
        return peer_config(str(entry.recipe), entry.peer, [*entry.overrides, start, *overrides])
    try:
        config = check(load_tree(path, overrides), Recipe)
    except RecursionError:
        raise UserError(f"{path}: values are nested too deeply, or ${{references}} form too long a chain") from None
    for key in ("preprocess", "augment", "loader"):  # their constructors reject combinations of keys
        build(config["data"][key])
    return config


def peer_config(path: str | Path, peer: str, overrides: Sequence[str] = ()) -> Config:
    """Load a config with another project's settings where they differ; the user's overrides take precedence."""
    return load_config(path, [*peer_differences(path, peer, overrides), *overrides])


def peer_differences(path: str | Path, peer: str, overrides: Sequence[str] = ()) -> list[str]:
    """Return the overrides of a config for what another project does differently."""
    return [*IN_ALL_PROJECTS, *DIFFERENCES[peer](load_config(path, overrides))]


def run_folder(config: Config, config_path: str | Path) -> Path:
    """Return the folder of a config file's run: `<output>/<name of the file without its suffix>`.

    The config.yml in a run's folder belongs to that run, unless the command line sets another output.
    """
    path = Path(config_path)
    if path.name != "config.yml" or not (path.parent / "checkpoints").is_dir():
        return Path(config["output"]) / path.stem
    if config.origin("output") == COMMAND_LINE:
        return Path(config["output"]) / path.resolve().parent.name
    return path.parent


def build_dataset(
    config: Config, split: Literal["train", "val"], class_names: Sequence[str] | None = None
) -> CocoDataset:
    """Read the annotations of a split. If `class_names` is given, its classes are matched with these by name.

    With `train.drop_empty_classes`, the classes dropped from the training set are dropped from the validation set too.
    """
    node = config["data"][split]
    if split == "val" and node.get("ratios") is not None:
        raise UserError(f"{node.location_of('ratios')}: only for training: evaluation uses every image once; remove it")
    drop = any(config["data"][name]["drop_empty_classes"] for name in ("train", split))
    dataset = build(node, class_names=class_names, drop_empty_classes=drop)
    if split == "val":
        dataset.problems = dataset.problems + evaluation_problems(dataset)
    return dataset


def log_notes(dataset: CocoDataset) -> None:
    """Log what was repaired, dropped or noticed in a dataset's annotations."""
    for note, problem in zip(dataset.problem_messages, dataset.problems, strict=True):
        get_logger().log(logging.INFO if problem.level == "note" else logging.WARNING, "%s", note)


def check_training_data(config: Config, train: CocoDataset, val: CocoDataset) -> None:
    """Check before training that the training set contains objects and that all images of both splits exist.

    Also checks that `train.best_metric` can be measured on the validation set.
    Problems are appended to those of the training set. Raises UserError, with the place in the config, if training is
    impossible.
    """
    _check_short_sides(config)
    train.problems = train.problems + training_problems(train)
    with errors_located_at(config["data"]["train"]):
        raise_if_refused(train.file, train.problems)
    check_images(config, "train", train)
    check_images(config, "val", val)
    _require_best_metric(config, val)


def _require_best_metric(config: Config, val: CocoDataset) -> None:
    """Raise UserError if the metric that selects the best checkpoint cannot be measured on the validation set."""
    metric, place = config["train"]["best_metric"], config.origin("train.best_metric")
    if metric == "loss" or config["train"]["evaluate_every"] is None:
        return
    measurable = measurable_metrics(val)
    if metric not in measurable:
        size = {"s": "small ", "m": "medium ", "l": "large "}.get(metric[-1], "") if measurable else ""
        choice = ", ".join(measurable) or "loss, with eval.loss: true, or train.evaluate_every: null"
        reason = f"{val.file} has no {size}object other than crowd regions"
        raise UserError(f"{place}: train.best_metric: {metric} cannot be measured: {reason}; choose {choice}")


def _check_short_sides(config: Config) -> None:
    augment, long_side = config["data"]["augment"], config["data"]["preprocess"]["long_side"]
    if augment["scale_jitter"] is None and max(augment["short_sides"] or [0]) > long_side:
        raise UserError(
            f"{augment.location_of('short_sides')}: {max(augment['short_sides'])} is above data.preprocess.long_side "
            f"{long_side} and would never apply; remove it, or raise long_side"
        )


def check_images(config: Config, split: Literal["train", "val"], dataset: CocoDataset) -> None:
    """Check that the images of a split exist (`CocoDataset.check_images`). Errors contain the place in the config.

    Missing training images are only warned about with `loader.on_bad_image: skip`.
    """
    with errors_located_at(config["data"][split]):
        dataset.check_images(strict=split == "val" or config["data"]["loader"]["on_bad_image"] == "error")


def build_model(config: Config, class_names: Sequence[str] | None = None, for_training: bool = True) -> FasterRCNN:
    """Build a config's model with randomly initialized weights, from the config's seed.

    class_names: by default those of the training annotations. for_training: include the parts that only training uses.
    """
    if class_names is None:
        class_names = build_dataset(config, "train").class_names
    paddle.seed(config["runtime"]["seed"])
    try:
        model = config["model"].component.from_config(config["model"], len(class_names), for_training)
    except IncompatibleArguments as error:
        place = config.origin(f"model.{error.key}")
        raise UserError(f"{place}: model.{error.key}: {error.reason}") from error
    stride = config["data"]["preprocess"]["stride"]
    if stride % model.neck.size_divisor:
        raise UserError(
            f"{config['data']['preprocess'].location_of('stride')}: {stride} is not a multiple of "
            f"{model.neck.size_divisor}, the stride of the model's coarsest feature map"
        )
    return model


def build_uninitialized(config: Config, class_names: Sequence[str]) -> FasterRCNN:
    """Build a config's model for detection without initializing its weights, which takes seconds for a large model.

    No other thread may build a model at the same time: Paddle would not initialize that one either.
    """
    with paddle.LazyGuard():
        return build_model(config, class_names, for_training=False)


def read_detector(path: Path) -> Weights:
    """Read weights of a detector, of this project or another, without a prefix that wraps all names."""
    weights = read_weights(path)
    arrays = without_wrapper(
        weights.arrays, weights.source, lambda names: CLASSIFIER in names or bool(find_peer(names))
    )
    return weights._replace(arrays=arrays)


def detection_arrays(weights: Weights) -> dict[str, np.ndarray]:
    """Return the arrays of weights without those that only training uses."""
    return {name: array for name, array in weights.arrays.items() if not name.startswith(TRAINING_ONLY)}


def use_device(config: Config) -> str:
    """Select the device of `runtime.device` and return its name. Raises UserError if it is not available."""
    wanted = config["runtime"]["device"]
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if wanted == "gpu" and not has_gpu:
        reason = "finds no GPU" if paddle.is_compiled_with_cuda() else "is a CPU build; install paddlepaddle-gpu"
        raise UserError(f"{config.origin('runtime.device')}: runtime.device: gpu, but this Paddle {reason}")
    paddle.set_device("gpu" if has_gpu and wanted != "cpu" else "cpu")
    return paddle.device.get_device()


def state_shapes(model: FasterRCNN) -> dict[str, tuple[int, ...]]:
    """Return the shape of every parameter and buffer by name."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def state_arrays(model: FasterRCNN) -> dict[str, np.ndarray]:
    """Return the values of every parameter and buffer by name."""
    return {name: value.numpy() for name, value in model.state_dict().items()}
