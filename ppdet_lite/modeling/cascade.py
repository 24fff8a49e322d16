"""Cascade R-CNN: a Faster R-CNN in which earlier stages refine the proposals."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from ppdet_lite.config.constrained_types import DeltaWeights, Fraction, PositiveFloat
from ppdet_lite.config.registry import Derived, build, register
from ppdet_lite.core.errors import IncompatibleArguments
from ppdet_lite.modeling.box_head import BoxPredictor
from ppdet_lite.modeling.components import Backbone, BoxHead, Neck, RoIPool
from ppdet_lite.modeling.faster_rcnn import FasterRCNN, TrainedRois, build_box_head, pool_in_float32
from ppdet_lite.modeling.matching import Sampler, count_true, sample_true
from ppdet_lite.modeling.mimic import RCNNTeacher
from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.modeling.roi_sampler import RoISampler
from ppdet_lite.modeling.rpn import RPN
from ppdet_lite.ops.boxes import clip_boxes, decode_boxes
from ppdet_lite.ops.roi_levels import image_of_roi
from ppdet_lite.structures import BoxHeadOutput, Rois, SampledRois, Targets

EVERY_ROI = Sampler(2**31 - 1, 1.0)


@register
@dataclass(frozen=True)
class CascadeStage:
    """What distinguishes the stages of a cascade.

    Args:
        foreground_iou: RoIs with at least this IoU with an object are foreground, all others background.
        delta_weights: see `BoxPredictor`; they grow with the stage, because RoIs become more accurate.
        loss_weight: factor of the stage's losses.
    """

    foreground_iou: Fraction
    delta_weights: DeltaWeights
    loss_weight: PositiveFloat


STAGES = (
    CascadeStage(0.5, (10.0, 10.0, 5.0, 5.0), 1 / 3),
    CascadeStage(0.6, (20.0, 20.0, 10.0, 10.0), 1 / 3),
    CascadeStage(0.7, (30.0, 30.0, 15.0, 15.0), 1 / 3),
)


class EarlierStage(nn.Layer):
    """The layers of a stage before the last."""

    def __init__(self, roi_pool: RoIPool, box_head: BoxHead, predictor: BoxPredictor) -> None:
        super().__init__()
        self.roi_pool, self.box_head, self.predictor = roi_pool, box_head, predictor

    def forward(self, features: Sequence[Tensor], rois: Rois) -> BoxHeadOutput:
        """Pool RoIs and predict their classes and boxes."""
        return self.predictor(self.box_head(pool_in_float32(self.roi_pool, features, rois)))


@register
class CascadeRCNN(FasterRCNN):
    """Cascade R-CNN (Cai and Vasconcelos 2018): the RoIs of each stage are the boxes predicted by the one before.

    `roi_pool`, `box_head` and `predictor` are the layers of the last stage, as in a Faster R-CNN; `earlier` has those
    of the others, each with its own weights. One section of a config describes the layers of all stages. Detections
    are the boxes of the last stage, with scores averaged over the stages, each for its own RoIs.

    The R-CNN teacher (`mimic`) works on the last stage: detections have its boxes, and its RoIs fit objects best, so
    that their patches show what the paper's R-CNN is trained on.

    Args:
        earlier: the stages before the last.
        stages: what distinguishes the stages, in order. The loss weights are those of PaddleDetection, 1 / number of
            stages; mmdetection has 1, 0.5, 0.25.
        stage_rois: RoIs that train the stages after the first. `all`: every box of the stage before, as in
            PaddleDetection and detectron2, also those refined from appended ground truth. `resampled`: as in
            mmdetection, without the latter; ground truth is appended and `roi_sampler` samples in each stage.
        average: `probabilities` (PaddleDetection, detectron2) or `logits` (mmdetection) are averaged over the stages.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck | None,
        rpn: RPN,
        roi_pool: RoIPool,
        box_head: BoxHead,
        predictor: BoxPredictor,
        roi_sampler: RoISampler = RoISampler(),
        postprocess: Postprocess = Postprocess(),
        mimic: RCNNTeacher | None = None,
        *,
        earlier: Derived[Sequence[EarlierStage]],
        stages: Sequence[CascadeStage] = STAGES,
        stage_rois: Literal["all", "resampled"] = "all",
        average: Literal["probabilities", "logits"] = "probabilities",
    ) -> None:
        predictors = [*(stage.predictor for stage in earlier), predictor]
        if len(predictors) != len(stages):
            reason = f"describes {len(stages)} stages, but {len(predictors)} have layers; pass one fewer in `earlier`"
            raise IncompatibleArguments("stages", reason)
        _check_shared_settings(roi_sampler, predictors)
        if mimic is not None and mimic.include_ground_truth and stage_rois == "all":
            reason = "the last stage's RoIs contain no ground truth: set it to false, or stage_rois to resampled"
            raise IncompatibleArguments("mimic.include_ground_truth", reason)
        samplers = [
            _sampler_of_stage(roi_sampler, stage, stage_rois == "all" and k > 0) for k, stage in enumerate(stages)
        ]
        super().__init__(backbone, neck, rpn, roi_pool, box_head, predictor, samplers[-1], postprocess, mimic)
        for stage, own in zip(stages, predictors):
            own.delta_weights = tuple(stage.delta_weights)
        self.earlier = nn.LayerList(earlier)
        self.stages, self.samplers = tuple(stages), samplers
        self.stage_rois, self.average = stage_rois, average

    @classmethod
    def _own_arguments(cls, config: Mapping[str, Any], neck: Neck, num_classes: int) -> dict[str, Any]:
        def earlier_stage() -> EarlierStage:
            roi_pool, box_head = build_box_head(config, neck)
            predictor = build(config["predictor"], in_features=box_head.out_features, num_classes=num_classes)
            return EarlierStage(roi_pool, box_head, predictor)

        stages = [build(stage) for stage in config["stages"]]
        return {
            "earlier": [earlier_stage() for _ in stages[1:]],
            "stages": stages,
            "stage_rois": config["stage_rois"],
            "average": config["average"],
        }

    def _predict(self, features: Sequence[Tensor], proposals: Rois, image_sizes: Tensor) -> tuple[BoxHeadOutput, Rois]:
        rois, logits = proposals, []
        for stage in self.earlier:
            output = stage(features, rois)
            logits.append(output.logits)
            rois = refine(rois, output, stage.predictor.delta_weights, image_sizes)
        output = self._run_head(features, rois)
        return output._replace(logits=self._mean_logits([*logits, output.logits])), rois

    def _mean_logits(self, logits: Sequence[Tensor]) -> Tensor:
        """Return logits [R, K + 1] whose softmax are the scores."""
        logits = paddle.stack([stage.astype("float32") for stage in logits])
        if self.average == "logits":
            return logits.mean(axis=0)
        return paddle.log(F.softmax(logits, axis=-1).mean(axis=0).clip(min=1e-30))

    def _train(
        self, features: Sequence[Tensor], proposals: Rois, targets: Sequence[Targets], image_sizes: Tensor
    ) -> TrainedRois:
        """Train each stage on the boxes of the one before. Names of losses and metrics end with the stage's number."""
        heads = [*((stage, stage.predictor) for stage in self.earlier), (self._run_head, self.predictor)]
        stages = list(zip(self.stages, self.samplers, heads, strict=True))
        rois, losses, metrics = proposals, {}, {}
        for number, (stage, sampler, (head, predictor)) in enumerate(stages, 1):
            sampled = sampler(rois, targets, predictor.num_classes)
            output = head(features, sampled.rois)
            stage_losses = predictor.losses(output, sampled)
            losses |= {f"{name}_{number}": stage.loss_weight * loss for name, loss in stage_losses.items()}
            metrics |= {f"{name}_{number}": value for name, value in predictor.metrics(output, sampled).items()}
            if number < len(stages):
                rois = self._next_rois(sampled, output, image_sizes, stage)
        return TrainedRois(sampled, output, losses, metrics)

    @paddle.no_grad()
    def _next_rois(self, sampled: SampledRois, output: BoxHeadOutput, image_sizes: Tensor, stage: CascadeStage) -> Rois:
        """Return the boxes that a stage predicted for its RoIs, without empty ones; see `stage_rois`."""
        boxes = refine(sampled.rois, output, stage.delta_weights, image_sizes).boxes
        kept = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        if self.stage_rois == "resampled":
            kept = kept & sampled.is_proposal
        sizes = count_true(kept.split(sampled.rois.counts_on_host()))
        boxes = paddle.gather(boxes, sample_true(kept, sum(sizes), sum(sizes)))
        return Rois(boxes, paddle.to_tensor(sizes, dtype="int32"), sizes)


@paddle.no_grad()
def refine(rois: Rois, output: BoxHeadOutput, delta_weights: Sequence[float], image_sizes: Tensor) -> Rois:
    """Return the boxes predicted for RoIs by class-agnostic deltas, clipped to image_sizes [N, 2] (h, w)."""
    boxes = decode_boxes(rois.boxes, output.deltas.astype("float32"), delta_weights)
    sizes = paddle.gather(image_sizes, image_of_roi(rois.counts, rois.boxes.shape[0]))
    return rois._replace(boxes=clip_boxes(boxes, sizes))


def _sampler_of_stage(shared: RoISampler, stage: CascadeStage, every_roi: bool) -> RoISampler:
    iou = stage.foreground_iou
    sampler = dataclasses.replace(
        shared, matcher=dataclasses.replace(shared.matcher, foreground_iou=iou, background_iou=iou)
    )
    return dataclasses.replace(sampler, sampler=EVERY_ROI, append_ground_truth=False) if every_roi else sampler


def _check_shared_settings(roi_sampler: RoISampler, predictors: Sequence[BoxPredictor]) -> None:
    """Raise IncompatibleArguments for a setting of all stages that `stages` would replace, and for boxes per class."""
    matcher, usual = roi_sampler.matcher, RoISampler().matcher
    for key in ("foreground_iou", "background_iou"):
        if getattr(matcher, key) != getattr(usual, key):
            reason = "has no effect in a cascade: remove it, and set foreground_iou in stages"
            raise IncompatibleArguments(f"roi_sampler.matcher.{key}", reason)
    for predictor in predictors:
        if predictor.delta_weights != STAGES[0].delta_weights:
            reason = "has no effect in a cascade: remove it, and set delta_weights in stages"
            raise IncompatibleArguments("predictor.delta_weights", reason)
        if not predictor.class_agnostic:
            reason = "a cascade needs one box per RoI, which becomes a RoI of the next stage: set it to true"
            raise IncompatibleArguments("predictor.class_agnostic", reason)
