"""The recorder of a training run, which passes measurements and images to the log, files and VisualDL."""

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
from ppdet_lite.training.curves import CurvesPlot
from ppdet_lite.training.metrics_file import MetricsFile
from ppdet_lite.training.progress import Progress
from ppdet_lite.training.sinks import Sink, StepRecord
from ppdet_lite.training.visualdl_log import VisualDLLog

SHOWN_PATCHES = 16  # maximum number of patches in an image


class Recorder:
    """Passes the measurements of a run on to its sinks: the progress display, metrics.jsonl, VisualDL and curves.png.

    Every `log_every`-th of `total` iterations is recorded, and the last one. A resumed run begins after `start`.
    `visualdl --logdir FOLDER/vdl` shows the scalars and images in a browser.
    """

    def __init__(self, folder: Path, total: int, start: int, log_every: int) -> None:
        self._total, self._log_every = total, log_every
        self._sinks: list[Sink] = [
            Progress(total, start, log_every),
            MetricsFile(folder / "metrics.jsonl", start),
            VisualDLLog(folder / "vdl", start),
            CurvesPlot(folder),
        ]

    def step(self, record: StepRecord) -> None:
        """Record a training iteration."""
        for sink in self._sinks:
            sink.step(record)
        if record.iteration % self._log_every == 0 or record.iteration == self._total:
            self._scalars("train", record.iteration, record.scalars())

    def evaluation(self, iteration: int, results: Mapping[str, Any]) -> None:
        """Record the COCO metrics (all names that begin with A) and, if they were computed, the validation losses."""
        metrics = {name: value for name, value in results.items() if name.startswith("A")}
        total = {"loss": results["loss"]} if "loss" in results else {}
        self._scalars("val", iteration, metrics | total | results.get("losses", {}))

    def draw_curves(self) -> None:
        """Redraw curves.png."""
        for sink in self._sinks:
            sink.draw()

    def preview(
        self, iteration: int, model: FasterRCNN, dataset: CocoDataset, preprocess: Preprocess, count: int
    ) -> None:
        """Record the first `count` images of a dataset with ground truth and predicted boxes."""
        for index in range(min(count, len(dataset))):
            image, image_id = dataset.load(index), dataset.info(index).id
            (boxes,) = detect(TrainedNetwork(model), [collate([image_sample(image, preprocess, image_id)], preprocess)])
            drawing = draw_comparison(image, dataset.annotations(index), boxes, dataset.class_names)
            self._image(f"val/{image_id}", iteration, drawing)

    def offsets(self, iteration: int, model: FasterRCNN, dataset: CocoDataset, preprocess: Preprocess) -> None:
        """Record how far the deformable parts, if there are any, move their samples in the first image of a dataset."""
        if not deformable_parts(model):
            return
        try:
            batch = collate([image_sample(dataset.load(0), preprocess, 0)], preprocess)
        except UserError as error:  # training may skip that image (`on_bad_image`)
            get_logger().warning("offsets are not recorded: %s", error)
            return
        self._scalars("offsets", iteration, offset_statistics(model, batch))

    def patches(
        self, iteration: int, patches: Patches | None, class_names: Sequence[str], preprocess: Preprocess
    ) -> None:
        """Record some patches, with their classes, that the R-CNN teacher received in the latest step."""
        if patches is not None:
            count = patches.classes.shape[0]
            shown = min(count, SHOWN_PATCHES)
            chosen = np.arange(shown) * count // shown  # spread over all images of the batch
            pixels = preprocess.denormalize(patches.images.numpy()[chosen])
            names = [*class_names, "background"]
            labels = [names[k] for k in patches.classes.numpy()[chosen]]
            self._image("train/mimic_patches", iteration, draw_strip(pixels, labels))

    def close(self) -> None:
        """Flush and close all sinks."""
        for sink in self._sinks:
            sink.close()

    def _scalars(self, group: str, iteration: int, values: Mapping[str, Any]) -> None:
        for sink in self._sinks:
            sink.scalars(group, iteration, values)

    def _image(self, name: str, iteration: int, pixels: np.ndarray) -> None:
        for sink in self._sinks:
            sink.image(name, iteration, pixels)
