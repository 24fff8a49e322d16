"""What a training run tells while it goes on: progress, metrics.jsonl, VisualDL, curves.png."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.images.drawing import draw_strip
from ppdet_lite.data.loading.transforms import Preprocess, collate, image_sample
from ppdet_lite.deployment.detect import TrainedNetwork, detect
from ppdet_lite.evaluation.infer import draw_comparison
from ppdet_lite.evaluation.offsets import deformable_parts, offset_statistics
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.structures import Patches
from ppdet_lite.training.curves import draw_curves
from ppdet_lite.training.metrics_file import MetricsWriter, read_metrics
from ppdet_lite.training.progress import Progress
from ppdet_lite.training.step import Step
from ppdet_lite.training.visualdl_log import Board

SHOWN_PATCHES = 16


class Recorder:
    """Writes metrics.jsonl, curves.png and vdl/ into a run's folder and shows the progress.

    Every `log_every`-th of `total` iterations is recorded, and the last one; `start` of them were done before.
    `visualdl --logdir FOLDER/vdl` shows the scalars and pictures in a browser.
    """

    def __init__(self, folder: Path, total: int, start: int, log_every: int) -> None:
        self._folder, self._total, self._log_every = folder, total, log_every
        self._metrics = MetricsWriter(folder / "metrics.jsonl", start)
        self._board = Board(folder / "vdl")
        self._progress = Progress(total, start, log_every)

    def step(
        self,
        iteration: int,
        epoch: int,
        lr: float,
        step: Step,
        seconds: float,
        data_seconds: float,
        memory: Sequence[float],
    ) -> None:
        """Tell of an iteration, counted from 1; memory: the most that was in use, in MiB, by rank."""
        self._progress.update(iteration, step.losses, lr, seconds, data_seconds, memory)
        if iteration % self._log_every == 0 or iteration == self._total:
            costs = {"seconds": seconds, "data_seconds": data_seconds, "memory_mb": max(memory)}
            row = {"epoch": epoch, "lr": lr, **step.losses, **step.metrics, **costs}
            self._metrics.write(iteration, row)
            self._board.scalars("train", row, iteration)

    def evaluation(self, iteration: int, results: Mapping[str, Any]) -> None:
        """Tell of the metrics on the validation images."""
        shown = {name: value for name, value in results.items() if name.startswith("A")}
        losses = {name: results[name] for name in ("loss",) if name in results} | results.get("losses", {})
        self._metrics.write(iteration, shown | {f"val_{name}": value for name, value in losses.items()})
        self._board.scalars("val", shown | losses, iteration)

    def curves(self) -> None:
        """Draw what metrics.jsonl says into curves.png. That it cannot be drawn is told, and ends no run."""
        try:
            draw_curves(read_metrics(self._folder / "metrics.jsonl"), self._folder / "curves.png", self._folder.name)
        except Exception as error:
            get_logger().warning("curves.png was not drawn: %s", error)

    def preview(
        self, iteration: int, model: FasterRCNN, dataset: CocoDataset, preprocess: Preprocess, count: int
    ) -> None:
        """Show the first `count` images of a dataset with true and predicted boxes."""
        for index in range(min(count, len(dataset))):
            image, image_id = dataset.load(index), dataset.info(index).id
            (found,) = detect(TrainedNetwork(model), [collate([image_sample(image, preprocess, image_id)], preprocess)])
            picture = draw_comparison(image, dataset.annotations(index), found, dataset.class_names)
            self._board.image(f"val/{image_id}", picture, iteration)

    def offsets(self, iteration: int, model: FasterRCNN, dataset: CocoDataset, preprocess: Preprocess) -> None:
        """Tell how far deformable parts, where there are any, move their samples in the first image of a dataset."""
        if not deformable_parts(model):
            return
        try:
            batch = collate([image_sample(dataset.load(0), preprocess, 0)], preprocess)
        except UserError as error:  # training may do without that image (`on_bad_image`)
            get_logger().warning("offsets are not shown: %s", error)
            return
        self._board.scalars("offsets", offset_statistics(model, batch), iteration)

    def patches(
        self, iteration: int, patches: Patches | None, class_names: Sequence[str], preprocess: Preprocess
    ) -> None:
        """Show some of what the R-CNN teacher, where there is one, saw in the last step, each with its class."""
        if patches is not None:
            count = patches.classes.shape[0]
            shown = min(count, SHOWN_PATCHES)
            chosen = np.arange(shown) * count // shown  # from all images of the batch
            pixels = preprocess.restore(patches.images.numpy()[chosen])
            names = [*class_names, "background"]
            labels = [names[k] for k in patches.classes.numpy()[chosen]]
            self._board.image("train/mimic_patches", draw_strip(pixels, labels), iteration)

    def close(self) -> None:
        """Flush and close everything."""
        self._progress.close()
        self._metrics.close()
        self._board.close()
