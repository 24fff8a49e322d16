"""Evaluation: detect in every image of a dataset, write bbox.json, and have that scored."""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import paddle.distributed as dist

from ppdet_lite.assembly.recipe import Evaluation
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.coco import CocoDataset
from ppdet_lite.data.loader import EvalBatches, Loader
from ppdet_lite.data.transforms import Preprocess
from ppdet_lite.evaluation.coco_metric import coco_results, format_metrics, score_file
from ppdet_lite.evaluation.detect import ImageDetections, detect, in_order, tell_progress
from ppdet_lite.evaluation.validation_loss import validation_losses
from ppdet_lite.evaluation.views import make_views, merged
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.storage.files import write_json, write_json_list

RESULTS, METRICS = "bbox.json", "metrics.json"


def evaluate(
    model: FasterRCNN,
    dataset: CocoDataset,
    preprocess: Preprocess,
    loader: Loader,
    folder: Path | None = None,
    how: Evaluation = Evaluation(),
) -> dict[str, Any]:
    """Detect in every image of a dataset and score it; return the metrics as `score_file` does, and log them.

    Writes bbox.json (COCO results) and metrics.json into the folder, where one is given. The dataset's classes must
    be the model's, in their order. With `how.loss` the metrics have `loss` and `losses` too, its parts by name. Under
    paddle.distributed each rank takes its share of the images, rank 0 gathers by image id, scores and writes, and
    every rank returns the metrics.

    Raises UserError for an image that cannot be read and a folder that cannot be written.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return evaluate(model, dataset, preprocess, loader, Path(temporary), how)
    rank, world = dist.get_rank(), dist.get_world_size()
    if world > 1 and not dist.is_initialized():
        dist.init_parallel_env()
    losses = validation_losses(model, dataset, preprocess, loader, rank, world) if how.loss else None
    views = make_views(preprocess, how)
    batches = EvalBatches(dataset, preprocess, loader, rank, world, views)
    found = detect(model, batches.iterate())
    if len(views) > 1:
        found = merged(found, len(views), model.postprocess)
    found = tell_progress(found, batches.image_count)
    found = in_order(found if world == 1 else _gather(found), dataset.image_ids.tolist())
    metrics: list[dict[str, Any]] = [{}]
    if rank == 0:
        write_json_list(folder / RESULTS, coco_results(found, dataset.category_ids))
        metrics = [score_file(dataset, folder / RESULTS, how.backend) | (losses or {})]
        write_json(folder / METRICS, metrics[0])
        get_logger().info("%s\nwritten: %s and %s", format_metrics(metrics[0]), folder / RESULTS, folder / METRICS)
    else:
        list(found)
    if world > 1:
        dist.broadcast_object_list(metrics, src=0)
    return metrics[0]


def _gather(found: Iterable[ImageDetections]) -> Iterator[ImageDetections]:
    """The detections of all ranks."""
    shares: list[list[ImageDetections]] = []
    dist.all_gather_object(shares, list(found))
    return itertools.chain.from_iterable(shares)
