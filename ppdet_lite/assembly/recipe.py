"""The root of a config: what may stand in a recipe, section by section."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

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
]  # COCO's twelve and the loss


@register
@dataclass(frozen=True)
class Data:
    """Where the images come from and how they become batches."""

    train: CocoDataset
    val: CocoDataset
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    loader: Loader = Loader()


@register
@dataclass(frozen=True)
class Train:
    """The course of training.

    length: of the whole run.
    log_every: iterations between two log lines.
    checkpoint_every, evaluate_every: a checkpoint and an evaluation; both also happen at the end. Null: only there.
    keep_last: checkpoints kept, beside the best one.
    best_metric: by which evaluation tells the best; of `loss` (see Evaluation) the least is.
    accumulate: batches whose gradients make one step, their mean; an iteration is a step, and the learning rate is that
        of all their images.
    ema: keep an average of the weights, and evaluate and export that; null for none.
    early_stop: evaluations without a better one after which training ends; null for never.
    freeze: patterns of parameters that are not trained, such as backbone.*; norms there keep their statistics going.
    amp: precision of convolutions and matrix products; weights, losses, boxes, deformable and RoI operators stay
        float32, evaluation too. float16, for GPUs alone, scales the loss and leaves out steps whose gradients overflow.
        On a CPU bfloat16 only rounds, and saves nothing (`modeling/amp.py`).
    rehearse: before the first iteration, take a step of the largest batch that can come and undo it, so that memory
        that does not suffice ends the run at once; its results are the same either way.
    preview_images: validation images drawn into VisualDL, with true and predicted boxes, at every evaluation.
    """

    length: Duration
    log_every: PositiveInt = 20
    checkpoint_every: Duration | None = "1 epoch"
    evaluate_every: Duration | None = "1 epoch"
    keep_last: PositiveInt = 2
    best_metric: BestMetric = "AP"
    preview_images: NonNegativeInt = 4
    accumulate: PositiveInt = 1
    ema: Average | None = None
    early_stop: PositiveInt | None = None
    freeze: Sequence[str] = ()
    amp: Literal["bfloat16", "float16"] | None = None
    rehearse: bool = True


@register
@dataclass(frozen=True)
class Evaluation:
    """How a model is evaluated, while it trains and afterwards. Inference and export take the image as it is.

    short_sides: sizes at which every image is looked at, in place of the preprocessing's, its long side in proportion;
        null for that one alone. What is found at all of them goes through one NMS.
    flip: look at the mirrored image too.
    loss: tell the training losses on the validation images, not augmented; mimicking's only while it trains.
    backend: who scores: pycocotools, or `faster`, which needs the package faster-coco-eval beside the requirements.
    """

    short_sides: Annotated[Sequence[PositiveInt], Field(min_length=1)] | None = None
    flip: bool = False
    loss: bool = False
    backend: Literal["pycocotools", "faster"] = "pycocotools"


@register
@dataclass(frozen=True)
class Runtime:
    """Where it runs, and the seed of everything random.

    device: auto takes a GPU if this Paddle and this machine have one, else the CPU.
    """

    device: Literal["auto", "cpu", "gpu"] = "auto"
    seed: NonNegativeInt = 0


@register
@dataclass(frozen=True)
class Recipe:
    """Everything a config says.

    weights: a trained model for evaluation, inference and export: a run or checkpoint folder, .safetensors, .pdparams.
    pretrain_weights: what training starts from: a local path, or https://...#sha256=... (also #md5=...); null for
        random initialisation.
    pretrain_class_map: {their name: our name} for classes that have another name in pretrain_weights, a trained
        detector's, than in the data; equal names need none.
    output: the folder below which each run has a folder named after its config.
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
