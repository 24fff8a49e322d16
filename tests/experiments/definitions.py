"""The experiments: which detectors they train, on which data."""

from typing import NamedTuple

SEEDS = (0, 1, 2)
IMAGES_SEEN = 1600  # by each detector of `batch`, and by that of detector.yml
AGREEING = "val_agreeing"  # validation images whose companions agree with the class as often as in training
BCCD = "configs/bccd"
DCONV, MDCONV = (f"model.backbone.deformable={{version: {version}, stages: [3, 4]}}" for version in (1, 2))
# Offset branches of convolutions learn at a tenth of the rate by default.
MDCONV_FAST = "model.backbone.deformable={version: 2, stages: [3, 4], offset_lr: 1}"
DPOOL = "model.roi_pool={type: DeformRoIPool, modulated: false, offset_lr: 0.01}"
MDPOOL = "model.roi_pool={type: DeformRoIPool, modulated: true, hidden: 256, offset_lr: 1.0}"
BATCHES = (1, 2, 4, 8)
# Group norm with one group and with one channel per group; frozen, which normalizes nothing with random weights.
NORMS_AT_4 = ("ln", "in", "frozen_bn")


class Variant(NamedTuple):
    """One detector of an experiment."""

    name: str
    overrides: tuple[str, ...] = ()
    config: str | None = None  # instead of the experiment's


def _mimic(weight: float, start: int = 0) -> str:
    """Return the override that adds mimicking, with this weight of both losses, from a training step on."""
    return (
        "model.mimic={type: RCNNTeacher, rois_per_image: 4, crop_size: 64, "
        f"loss_weight: {weight}, cls_loss_weight: {weight}, start_iteration: {start}}}"
    )


MIMIC = _mimic(1)


class Experiment(NamedTuple):
    """Detectors that are trained on the same data, once for each seed."""

    name: str
    config: str
    variants: tuple[Variant, ...]
    shapes: str | None = None  # the variant of the synthetic shapes; None: the blood cells in dataset/bccd
    other: str | None = None  # images on which the detectors are evaluated besides the validation images


def _batch(norm: str, batch: int) -> Variant:
    """Return a detector whose learning rate, warm-up and length go with its batch size."""
    steps = IMAGES_SEEN // batch
    return Variant(
        f"{norm}_{batch}",
        (
            f"model.backbone.norm={norm}",
            f"data.loader.batch_size={batch}",
            f"schedule.warmup_iterations={200 // batch}",
            f"train.length={steps} iterations",
            f"train.checkpoint_every={steps // 4} iterations",
        ),
    )


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "context",
            "tests/experiments/context.yml",
            (
                Variant("plain"),
                Variant("mimic", (MIMIC,)),
                Variant("mdconv", (MDCONV,)),
                Variant("mdconv_mimic", (MDCONV, MIMIC)),
                Variant("mimic_0.3", (_mimic(0.3),)),
                Variant("mimic_0.1", (_mimic(0.1),)),
                Variant("mimic_late", (_mimic(1, start=400),)),
            ),
            shapes="context",
            other=AGREEING,
        ),
        Experiment(
            "deformed",
            "tests/experiments/deformed.yml",
            (
                Variant("plain"),
                Variant("dconv", (DCONV,)),
                Variant("mdconv", (MDCONV,)),
                Variant("dpool", (DPOOL,)),
                Variant("mdpool", (MDPOOL,)),
                Variant("mdconv_mdpool", (MDCONV, MDPOOL)),
                Variant("mdconv_fast", (MDCONV_FAST,)),
            ),
            shapes="deformed",
        ),
        Experiment(
            "batch",
            "tests/experiments/detector.yml",
            (
                *(_batch(norm, batch) for batch in reversed(BATCHES) for norm in ("bn", "gn")),
                *(_batch(norm, 4) for norm in NORMS_AT_4),
            ),
            shapes="plain",
        ),
        Experiment(
            "cells",
            f"{BCCD}/faster_rcnn_r18_fpn_bccd.yml",
            (
                Variant("plain"),
                Variant("cascade", config=f"{BCCD}/cascade_rcnn_r18_fpn_bccd.yml"),
                Variant("gn", config=f"{BCCD}/faster_rcnn_gn_r18_fpn_bccd.yml"),
                Variant("mdconv", config=f"{BCCD}/faster_rcnn_mdconv_c4-c5_r18_fpn_bccd.yml"),
                Variant("v2_mimic", config=f"{BCCD}/faster_rcnn_mdconv_c4-c5_mdpool_mimic_r18_fpn_bccd.yml"),
            ),
            other="test",
        ),
    )
}
