"""From a config to the objects that it describes."""

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
from ppdet_lite.config.registry import build, placed
from ppdet_lite.core.errors import Misfit, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.annotations.problems import refuse
from ppdet_lite.data.annotations.training_checks import training_problems
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.peers.names import peer_of
from ppdet_lite.storage.weights import Weights, match_weights, read_weights

TRAINING_ONLY = "mimic."  # how the names of weights begin that a checkpoint has and a detector does without


class TrainedModel(NamedTuple):
    """A trained model with what is needed to use it."""

    model: FasterRCNN  # in evaluation mode
    class_names: list[str]
    category_ids: list[int]  # class -> id in the data it was trained on
    preprocess: Preprocess
    source: str  # the weights it was read from


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a config; `overrides` are "a.b=value" texts. Raises UserError with one line per mistake."""
    config = check(load_tree(path, overrides), Recipe)
    for key in ("preprocess", "augment", "loader"):  # they know which of their keys exclude each other
        build(config["data"][key])
    return config


def run_folder(config: Config, config_path: str | Path) -> Path:
    """Where a run of a config file writes: `<output>/<name of the file>`."""
    return Path(config["output"]) / Path(config_path).stem


def build_dataset(
    config: Config, split: Literal["train", "val"], class_names: Sequence[str] | None = None
) -> CocoDataset:
    """Read the annotations of a split; its classes are matched by name with `class_names` where given.

    A training set that drops empty classes has the validation set leave out the same ones.
    """
    chosen = config["data"][split]
    if split == "val" and chosen.get("ratios") is not None:
        raise UserError(f"{chosen.place_of('ratios')}: is for training, evaluation sees every image once; remove it")
    drop = any(config["data"][each]["drop_empty_classes"] for each in ("train", split))
    return build(chosen, class_names=class_names, drop_empty_classes=drop)


def log_notes(dataset: CocoDataset) -> None:
    """Log what was mended, dropped or noticed in a dataset's annotations."""
    for note, problem in zip(dataset.notes, dataset.problems, strict=True):
        get_logger().log(logging.INFO if problem.level == "note" else logging.WARNING, "%s", note)


def check_training_data(config: Config, train: CocoDataset, val: CocoDataset) -> None:
    """Look at both splits before training: whether there is something to learn, and whether all images are there.

    Adds what it finds to the training set's problems. Raises UserError, with the place in the config, for what cannot
    be trained on.
    """
    train.problems = train.problems + training_problems(train)
    with placed(config["data"]["train"]):
        refuse(train.file, train.problems)
    check_images(config, "train", train)
    check_images(config, "val", val)


def check_images(config: Config, split: Literal["train", "val"], dataset: CocoDataset) -> None:
    """Look whether the images of a split are there (`CocoDataset.check_images`); errors have the config's place.

    Training that may skip bad images is only told of them.
    """
    with placed(config["data"][split]):
        dataset.check_images(strict=split == "val" or config["data"]["loader"]["on_bad_image"] == "error")


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


def build_unfilled(config: Config, class_names: Sequence[str]) -> FasterRCNN:
    """The model for detection, whose weights are yet to be given: none are drawn, which takes a large one seconds.

    Meanwhile no other thread may build a model: Paddle would leave that one without weights, too.
    """
    with paddle.LazyGuard():
        return build_model(config, class_names, for_training=False)


def load_trained(config: Config) -> TrainedModel:
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
    model = build_unfilled(config, class_names)
    report = match_weights(state_shapes(model), detection_arrays(weights))
    report.require_complete(weights.source)
    model.set_state_dict(report.matched)
    model.eval()
    return TrainedModel(model, class_names, category_ids, build(config["data"]["preprocess"]), weights.source)


def detection_arrays(weights: Weights) -> dict[str, np.ndarray]:
    """The arrays of weights without those that only training needs."""
    return {name: array for name, array in weights.arrays.items() if not name.startswith(TRAINING_ONLY)}


def use_device(config: Config) -> str:
    """Choose the device that `runtime.device` names, and return its name. Raises UserError where there is none."""
    wanted = config["runtime"]["device"]
    has_gpu = paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if wanted == "gpu" and not has_gpu:
        reason = "sees no GPU" if paddle.is_compiled_with_cuda() else "is a CPU build; install paddlepaddle-gpu"
        raise UserError(f"{config.origin('runtime.device')}: runtime.device: gpu, but this Paddle {reason}")
    paddle.set_device("gpu" if has_gpu and wanted != "cpu" else "cpu")
    return paddle.device.get_device()


def state_shapes(model: FasterRCNN) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and buffer by name."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}
