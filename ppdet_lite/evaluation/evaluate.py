"""Evaluation: detect objects in all images of a dataset, write bbox.json and score it with the COCO metric."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ppdet_lite.assembly import ranks
from ppdet_lite.assembly.recipe import Evaluation
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.deployment.detect import ImageDetections, TrainedNetwork
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.coco_backends import require_backend
from ppdet_lite.evaluation.coco_metric import coco_results, format_metrics, score_file
from ppdet_lite.evaluation.progress import in_order, log_progress
from ppdet_lite.evaluation.test_time_augmentation import make_views, merge_views
from ppdet_lite.evaluation.validation_loss import validation_losses
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.storage.files import write_json, write_json_list

RESULTS, METRICS = "bbox.json", "metrics.json"
EXCHANGE_INTERVAL = 5.0  # seconds between two exchanges of detections among ranks


def evaluate(
    detector: Detector,
    dataset: CocoDataset,
    loader: Loader,
    folder: Path | None = None,
    options: Evaluation = Evaluation(),
    check: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Detect objects in all images of a dataset; score, log and return the metrics (see `score_file`).

    Writes bbox.json (COCO results) and metrics.json into the folder, if one is given. The classes of the dataset have
    to be the detector's, in the same order. With `options.loss` the metrics also contain `loss`, the sum, and
    `losses`, its terms by name. With several ranks each detects in a part of the batches and rank 0 scores and writes;
    all return the same metrics, which equal those of a single process.

    check: called after every image. An exception that it raises ends the evaluation on all ranks.

    Raises UserError for an image that cannot be read, a folder that cannot be written, a backend that is not installed,
    and `options.loss` with an exported model, which has no losses.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return evaluate(detector, dataset, loader, Path(temporary), options, check)
    require_backend(options.backend)
    ranks.start()
    losses = {}
    if options.loss:
        losses = validation_losses(_trained_model(detector), dataset, detector.preprocess, loader, check)
    views = make_views(detector.preprocess, options)
    batches = EvalBatches(dataset, detector.preprocess, loader, ranks.rank(), ranks.world(), views)
    results = detector.detect(batches.iterate())
    if len(views) > 1:
        results = merge_views(results, len(views), detector.postprocess)
    results = _call_after_each(log_progress(results, batches.image_count), check)
    if ranks.world() > 1:
        results = _gather_from_ranks(results)
    results = in_order(results, dataset.image_ids.tolist())
    return ranks.on_rank0(lambda: _score(results, losses, dataset, folder, options))


def evaluate_results(dataset: CocoDataset, results: Path, options: Evaluation = Evaluation()) -> dict[str, Any]:
    """Score a COCO results file without a model; log and return the metrics, and write metrics.json beside the file.

    Raises UserError for a file that does not contain results of the dataset, and a folder that cannot be written.
    """
    metrics = score_file(dataset, results, options.backend)
    get_logger().info("%s", format_metrics(metrics))
    write_json(results.with_name(METRICS), metrics)
    return metrics


def _trained_model(detector: Detector) -> FasterRCNN:
    if not isinstance(detector.network, TrainedNetwork):
        raise UserError(f"{detector.source}: an exported model has no losses; remove eval.loss")
    return detector.network.model


def _score(
    results: Iterable[ImageDetections], losses: dict[str, Any], dataset: CocoDataset, folder: Path, options: Evaluation
) -> dict[str, Any]:
    """Write the results file and its metrics; log and return the metrics."""
    write_json_list(folder / RESULTS, coco_results(results, dataset.category_ids))
    metrics = score_file(dataset, folder / RESULTS, options.backend) | losses
    write_json(folder / METRICS, metrics)
    get_logger().info("%s\nwritten: %s and %s", format_metrics(metrics), folder / RESULTS, folder / METRICS)
    return metrics


def _gather_from_ranks(results: Iterator[ImageDetections]) -> list[ImageDetections]:
    """Return the detections of all ranks. They are exchanged every few seconds, so that a failure is reported soon."""

    def detect_until_exchange() -> list[ImageDetections]:
        part, deadline = [], time.monotonic() + EXCHANGE_INTERVAL
        for image in results:
            part.append(image)
            if time.monotonic() >= deadline:
                break
        return part

    gathered: list[ImageDetections] = []
    while any(parts := ranks.on_all_ranks(detect_until_exchange)):
        gathered.extend(itertools.chain.from_iterable(parts))
    return gathered


def _call_after_each(results: Iterable[ImageDetections], check: Callable[[], None] | None) -> Iterator[ImageDetections]:
    for image in results:
        yield image
        if check is not None:
            check()
