"""The schema of a config: its root `Recipe` and the sections that are not components of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from ppdet_lite.config.constrained_types import NonNegativeInt, Pixels, PositiveInt, Seed
from ppdet_lite.config.registry import register
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.augment import Augment
from ppdet_lite.data.loading.loader import Loader
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.optimization.duration import Duration
from ppdet_lite.optimization.optimizer import Average, Optimizer
from ppdet_lite.optimization.schedule import Schedule

BestMetric = Literal[
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl", "loss"
]  # the twelve COCO metrics and the validation loss


@register
@dataclass(frozen=True)
class Data:
    """The datasets, and how their images become batches."""

    train: CocoDataset
    val: CocoDataset
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    loader: Loader = Loader()


@register
@dataclass(frozen=True)
class Train:
    """The training loop.

    length: duration of the whole run.
    log_every: iterations between two log lines.
    checkpoint_every, evaluate_every: duration between two. Both also happen at the end. Null: a checkpoint only at the
        end, and no evaluation, except at the end with `train.py --eval`.
    keep_last: number of latest checkpoints to keep, in addition to the best one.
    best_metric: metric whose highest value selects the best checkpoint; `loss`: the lowest, needs `eval.loss`.
    accumulate: batches per step, whose gradients are averaged. An iteration is one step; the learning rate is scaled
        for all images of a step.
    ema: keep an exponential moving average of the weights, which is evaluated and exported; null for none.
    early_stop: number of evaluations without improvement after which training ends; null for never.
    freeze: name patterns of parameters that are not trained, such as backbone.*; their norms still update statistics.
    amp: precision of convolutions and matrix products in training; `runtime.precision` is that of evaluation. Weights,
        losses, boxes, deformable and RoI operators stay float32. float16 requires a GPU, scales the loss and skips
        steps whose gradients overflow. On a CPU without AMX bfloat16 only rounds values and is not faster
        (`modeling/amp.py`).
    rehearse: before the first iteration, run one step on the largest possible batch and undo it, so that a run that
        would run out of memory fails at once. It does not change the results.
    preview_images: number of validation images with true and predicted boxes written to VisualDL at every evaluation.
    """

    length: Duration
    log_every: PositiveInt = 20
    checkpoint_every: Duration | None = "1 epoch"
    evaluate_every: Duration | None = "1 epoch"
    keep_last: PositiveInt = 2
    best_metric: BestMetric = "AP"
    preview_images: NonNegativeInt = 4
    accumulate: Annotated[int, Field(gt=0, le=4096)] = 1
    ema: Average | None = None
    early_stop: PositiveInt | None = None
    freeze: Sequence[str] = ()
    amp: Literal["bfloat16", "float16"] | None = None
    rehearse: bool = True


@register
@dataclass(frozen=True)
class Evaluation:
    """Evaluation during and after training. Test-time augmentation is not used by inference and export.

    short_sides: short sides in pixels to which every image is resized, instead of the one in `preprocess`; its limit
        of the long side is scaled in proportion. Detections of all sizes go through one NMS. Null: only `preprocess`.
    flip: also detect in the horizontally flipped image.
    loss: also compute the training losses on validation images, without augmentation; the mimicking losses only
        during training.
    backend: the package that computes AP: `faster` is faster-coco-eval; `pycocotools` is the original and several times
        slower; `auto` is the first of these that is installed. The numbers are the same.
    """

    short_sides: Annotated[Sequence[Pixels], Field(min_length=1)] | None = None
    flip: bool = False
    loss: bool = False
    backend: Literal["auto", "faster", "pycocotools"] = "auto"


@register
@dataclass(frozen=True)
class Runtime:
    """The device, the precision of detection, and the seed of all random numbers.

    device: auto uses a GPU if the installed Paddle and the machine support one, else the CPU.
    precision: of convolutions and linear layers when a trained model, not an exported one, detects on a CPU with AMX.
    """

    device: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: Seed = 0


@register
@dataclass(frozen=True)
class Recipe:
    """The root of a config.

    weights: a trained model for evaluation, inference and export: a run or checkpoint folder, .safetensors, .pdparams,
        or zoo:NAME.
    pretrain_weights: initial weights for training: a local path, zoo:NAME (see `ppdet-lite zoo list`), or
        https://...#sha256=... (also #md5=...); null for random initialization.
    pretrain_class_map: {name in pretrain_weights: name in the data} for classes of a trained detector whose names
        differ.
    output: the parent folder of run folders, each of which has the name of its config file.
    """

    model: FasterRCNN
    data: Data
    optimizer: Optimizer
    schedule: Schedule
    train: Train
    eval: Evaluation = Evaluation()
    runtime: Runtime = Runtime()
    weights: str | None = None
    pretrain_weights: str | None = None
    pretrain_class_map: dict[str, str] | None = None
    output: str = "output"
