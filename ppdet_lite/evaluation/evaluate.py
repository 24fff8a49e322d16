"""Evaluation: detect in every image of a dataset, write bbox.json, and have that scored."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from ppdet_lite.evaluation.coco_metric import coco_results, format_metrics, require_backend, score_file
from ppdet_lite.evaluation.progress import in_order, tell_progress
from ppdet_lite.evaluation.test_time_augmentation import make_views, merged
from ppdet_lite.evaluation.validation_loss import validation_losses
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.storage.files import write_json, write_json_list

RESULTS, METRICS = "bbox.json", "metrics.json"
ROUND = 5.0  # seconds between two exchanges of what ranks have found


def evaluate(
    detector: Detector,
    dataset: CocoDataset,
    loader: Loader,
    folder: Path | None = None,
    how: Evaluation = Evaluation(),
    check: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Detect in every image of a dataset and score it; return the metrics as `score_file` does, and log them.

    Writes bbox.json (COCO results) and metrics.json into the folder, where one is given. The dataset's classes must
    be the detector's, in their order. With `how.loss` the metrics have `loss` and `losses` too, its parts by name. Of
    several ranks each takes its share of the batches, rank 0 scores and writes, and every one returns the metrics,
    which are those of a single process.

    check: called after every image; what it raises ends the evaluation, on all ranks.

    Raises UserError for an image that cannot be read, a folder that cannot be written, a backend that is not here, and
    `how.loss` of an exported model, which has none.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return evaluate(detector, dataset, loader, Path(temporary), how, check)
    require_backend(how.backend)
    ranks.start()
    losses = validation_losses(_trained(detector), dataset, detector.preprocess, loader, check) if how.loss else {}
    views = make_views(detector.preprocess, how)
    batches = EvalBatches(dataset, detector.preprocess, loader, ranks.rank(), ranks.world(), views)
    found = detector.detect(batches.iterate())
    if len(views) > 1:
        found = merged(found, len(views), detector.postprocess)
    found = _checked(tell_progress(found, batches.image_count), check)
    if ranks.world() > 1:
        found = _of_all_ranks(found)
    found = in_order(found, dataset.image_ids.tolist())
    return ranks.first(lambda: _score(found, losses, dataset, folder, how))


def evaluate_results(dataset: CocoDataset, results: Path, how: Evaluation = Evaluation()) -> dict[str, Any]:
    """Score a COCO results file, without a model: return the metrics, log them, and write metrics.json beside it.

    Raises UserError for what are no results of the dataset and a folder that cannot be written.
    """
    metrics = score_file(dataset, results, how.backend)
    get_logger().info("%s", format_metrics(metrics))
    write_json(results.with_name(METRICS), metrics)
    return metrics


def _trained(detector: Detector) -> FasterRCNN:
    if not isinstance(detector.network, TrainedNetwork):
        raise UserError(f"{detector.source}: an exported model has no losses; leave out eval.loss")
    return detector.network.model


def _score(
    found: Iterable[ImageDetections], losses: Mapping[str, Any], dataset: CocoDataset, folder: Path, how: Evaluation
) -> dict[str, Any]:
    """Write the results and what is said of them; return that."""
    write_json_list(folder / RESULTS, coco_results(found, dataset.category_ids))
    metrics = score_file(dataset, folder / RESULTS, how.backend) | losses
    write_json(folder / METRICS, metrics)
    get_logger().info("%s\nwritten: %s and %s", format_metrics(metrics), folder / RESULTS, folder / METRICS)
    return metrics


def _of_all_ranks(found: Iterator[ImageDetections]) -> list[ImageDetections]:
    """What every rank finds. It is exchanged every few seconds, so that one that fails or ends is heard of soon."""

    def share() -> list[ImageDetections]:
        part, until = [], time.monotonic() + ROUND
        for image in found:
            part.append(image)
            if time.monotonic() >= until:
                break
        return part

    gathered: list[ImageDetections] = []
    while any(parts := ranks.together(share)):
        gathered.extend(itertools.chain.from_iterable(parts))
    return gathered


def _checked(found: Iterable[ImageDetections], check: Callable[[], None] | None) -> Iterator[ImageDetections]:
    for image in found:
        yield image
        if check is not None:
            check()
