"""Evaluation with the COCO metric: detect, write bbox.json, and let pycocotools score what was written."""

import contextlib
import io
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import paddle.distributed as dist
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import format_eta, get_logger
from ppdet_lite.data.coco import CocoDataset
from ppdet_lite.data.loader import EvalBatches, Loader
from ppdet_lite.data.transforms import Batch, Preprocess
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.storage.files import atomic_writer

RESULTS, METRICS = "bbox.json", "metrics.json"
SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # COCOeval's order
TELL_EVERY = 10.0  # seconds between two lines about the progress
COLUMNS = 4  # of the table of classes


class ImageDetections(NamedTuple):
    """What was found in one image; D = 0 is legal."""

    image_id: int
    boxes: np.ndarray  # [D, 4] float32 xyxy, original pixels
    scores: np.ndarray  # [D] float32, descending
    classes: np.ndarray  # [D] int64, 0..K-1


def detect(model: FasterRCNN, batches: Iterable[Batch]) -> Iterator[ImageDetections]:
    """Yield the detections of every image of the batches, in their order.

    The model is in evaluation mode meanwhile; in the end each layer returns to the mode it was in.
    """
    modes = [(layer, layer.training) for layer in model.sublayers(include_self=True)]
    model.eval()
    try:
        for batch in batches:
            with paddle.no_grad():
                found = model(*(paddle.to_tensor(batch[key]) for key in ("images", "image_sizes", "scales")))
            ends = np.cumsum(found.counts.numpy())[:-1]
            parts = (np.split(part.numpy(), ends) for part in (found.boxes, found.scores, found.classes))
            yield from map(ImageDetections, batch["image_ids"].tolist(), *parts)
    finally:
        for layer, training in modes:
            layer.training = training


def evaluate(
    model: FasterRCNN, dataset: CocoDataset, preprocess: Preprocess, loader: Loader, folder: Path | None = None
) -> dict[str, Any]:
    """Detect in every image of a dataset and score it; return the metrics as `score_file` does, and log them.

    Writes bbox.json (COCO results) and metrics.json into the folder, where one is given. The dataset's classes must
    be the model's, in their order. Under paddle.distributed each rank takes its share of the images, rank 0 gathers
    by image id, scores and writes, and every rank returns the metrics.

    Raises UserError for an image that cannot be read and a folder that cannot be written.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return evaluate(model, dataset, preprocess, loader, Path(temporary))
    rank, world = dist.get_rank(), dist.get_world_size()
    if world > 1 and not dist.is_initialized():
        dist.init_parallel_env()
    batches = EvalBatches(dataset, preprocess, loader, rank, world)
    found = tell_progress(detect(model, batches.iterate()), len(range(rank, len(dataset), world)))
    if world > 1:
        found = _gather(found, dataset.image_ids)
    metrics: list[dict[str, Any]] = [{}]
    if rank == 0:
        write_json_list(folder / RESULTS, _coco_results(found, dataset.category_ids))
        metrics = [score_file(dataset, folder / RESULTS)]
        write_json(folder / METRICS, metrics[0])
        get_logger().info("%s\nwritten: %s and %s", format_metrics(metrics[0]), folder / RESULTS, folder / METRICS)
    else:
        list(found)
    if world > 1:
        dist.broadcast_object_list(metrics, src=0)
    return metrics[0]


def score_file(dataset: CocoDataset, results: Path) -> dict[str, Any]:
    """Let pycocotools score a COCO results file (bbox) against the objects of a dataset.

    Returns AP, AP50, ..., ARl (see `SUMMARY`) in 0..1, `per_class` {name: AP}, and the numbers of `images` and
    `detections`. As pycocotools has it, -1 stands where nothing of that size or class is annotated. Without any
    detection the rest is 0. Raises UserError if the file is missing or not the results of this dataset.
    """
    records = _read_results(Path(results), dataset)
    for number, record in enumerate(records, start=1):  # as COCO.loadRes does, which fails on an empty list
        record.update(id=number, area=record["bbox"][2] * record["bbox"][3], iscrowd=0)
    truth, found = COCO(), COCO()
    truth.dataset = dataset.ground_truth()
    found.dataset = {**truth.dataset, "annotations": records}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found.createIndex()
        scorer = COCOeval(truth, found, "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    precision = scorer.eval["precision"][:, :, :, 0, -1]  # [IoU thresholds, recalls, K], all sizes, 100 detections
    column = {category: k for k, category in enumerate(scorer.params.catIds)}
    return {
        **{name: float(value) for name, value in zip(SUMMARY, scorer.stats, strict=True)},
        "per_class": {
            name: _mean(precision[:, :, column[category]])
            for name, category in zip(dataset.class_names, dataset.category_ids.tolist(), strict=True)
        },
        "images": len(dataset),
        "detections": len(records),
    }


def format_metrics(metrics: dict[str, Any]) -> str:
    """Lay out what `score_file` returns as lines for people; -- where there is nothing to measure."""
    lines = [f"{metrics['detections']} detections in {metrics['images']} images"]
    lines += [_row((name, metrics[name]) for name in names) for names in (SUMMARY[:6], SUMMARY[6:])]
    classes = list(metrics["per_class"].items())
    width = max(len(name) for name, _ in classes)
    rows = (classes[start : start + COLUMNS] for start in range(0, len(classes), COLUMNS))
    return "\n".join([*lines, "AP per class", *(_row(row, width) for row in rows)])


def tell_progress(found: Iterator[ImageDetections], total: int) -> Iterator[ImageDetections]:
    """Pass detections on, logging now and then how many of `total` images are done and how long the rest takes."""
    began = told = time.perf_counter()
    for count, image in enumerate(found, start=1):
        yield image
        now = time.perf_counter()
        if now - told >= TELL_EVERY:
            told, rate = now, count / (now - began)
            get_logger().info(
                "image %d/%d  eta %s  %.2f images/s", count, total, format_eta((total - count) / rate), rate
            )


def write_json(path: Path, content: Any) -> None:
    """Write an indented JSON file, whole or not at all. Raises UserError when it cannot be written."""
    with _file(path) as file:
        file.write(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode())


def write_json_list(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Write a JSON list while its records come in, one on a line; the file appears whole or not at all.

    It is opened before the first record is asked for. Raises UserError when it cannot be written.
    """
    with _file(path) as file:
        separator = "[\n"
        for record in records:
            file.write(f"{separator}{json.dumps(record, ensure_ascii=False, allow_nan=False)}".encode())
            separator = ",\n"
        file.write(b"\n]\n" if separator == ",\n" else b"[]\n")


@contextlib.contextmanager
def _file(path: Path) -> Iterator[io.BufferedIOBase]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            yield file
    except OSError as error:
        if error.errno is None:  # from within the block, such as CUDA's, which Paddle raises as OSError
            raise
        raise UserError(f"{path}: cannot be written: {error.strerror}; free space or choose another output") from error


def _coco_results(found: Iterable[ImageDetections], category_ids: np.ndarray) -> Iterator[dict[str, Any]]:
    for image in found:
        boxes = image.boxes.astype(np.float64)  # widths are then exact
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        categories = category_ids[image.classes].tolist()
        for box, category, score in zip(xywh, categories, image.scores.tolist(), strict=True):
            yield {"image_id": image.image_id, "category_id": category, "bbox": box, "score": score}


def _gather(found: Iterable[ImageDetections], image_ids: np.ndarray) -> Iterator[ImageDetections]:
    """The detections of all ranks, each image once, in the order of `image_ids`."""
    shares: list[list[ImageDetections]] = []
    dist.all_gather_object(shares, list(found))
    by_id = {image.image_id: image for share in shares for image in share}
    yield from (by_id[image_id] for image_id in image_ids.tolist())


def _read_results(path: Path, dataset: CocoDataset) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read results {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"results {path} are not JSON: {error}") from None
    if not isinstance(records, list):
        raise UserError(f"results {path}: a list of detections is expected, found {type(records).__name__}")
    images, categories = set(dataset.image_ids.tolist()), set(dataset.category_ids.tolist())
    for number, record in enumerate(records, start=1):
        if not _is_detection(record):
            raise UserError(f"results {path}: entry {number} is no image_id, category_id, bbox [x, y, w, h] and score")
        for key, known in (("image_id", images), ("category_id", categories)):
            if record[key] not in known:
                raise UserError(
                    f"results {path}: entry {number} has {key} {record[key]}, which is not in {dataset.file}; "
                    "are they the results of another dataset?"
                )
    return records


def _is_detection(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("bbox"), list):
        return False
    ids = [record.get("image_id"), record.get("category_id")]
    numbers = [*record["bbox"], record.get("score")]
    return (
        len(numbers) == 5
        and all(type(value) is int for value in ids)
        and all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
    )


def _mean(precision: np.ndarray) -> float:
    """The mean of what pycocotools could measure (the rest is -1); -1 if there is nothing."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else -1.0


def _row(items: Iterable[tuple[str, float]], width: int = 0) -> str:
    cells = (f"{name:<{width or 5}} {'--' if value == -1 else f'{value:.3f}':5}" for name, value in items)
    return "  ".join(cells).rstrip()
