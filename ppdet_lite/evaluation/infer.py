"""Detection in image files: visualizations with boxes, names and scores, and detections.json."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset, Objects
from ppdet_lite.data.images.drawing import add_title, draw_boxes, draw_detections, side_by_side, write_image
from ppdet_lite.data.images.files import ImageFiles
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.evaluation.progress import in_order, log_progress
from ppdet_lite.storage.files import write_json_list

DETECTIONS = "detections.json"

Painter = Callable[[np.ndarray, ImageDetections], np.ndarray]  # image [H, W, 3] RGB, detections -> visualization


class _TolerantFiles(ImageFiles):
    """Image files. A damaged file is loaded as a black image, and its error is stored in `failures` by index."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        super().__init__(root, names)
        self.failures: dict[int, str] = {}

    def load(self, index: int) -> np.ndarray:
        try:
            return super().load(index)
        except UserError as error:
            self.failures[index] = str(error)
            return np.zeros((*self.sizes[index].tolist(), 3), np.uint8)


def infer(
    detector: Detector, source: Path, output: Path, loader: Loader, score: float = 0.5, truth: Path | None = None
) -> None:
    """Detect objects in an image, or in all images of a folder and its subfolders.

    Writes a visualization of each image with the detections of at least `score`, under its name and subfolder below
    `output`, and detections.json, a list of {file, width, height, detections: [{class, category_id, score, bbox}]},
    bbox [x1, y1, x2, y2] in pixels of the image after its EXIF orientation was applied. Files are written completely or
    not at all, detections.json last.

    truth: a COCO annotation file of the images, by their names relative to the source. Annotated boxes are drawn in a
    second visualization on the left.

    Damaged images are skipped and logged; RunFailed is raised for them after everything else is written. Raises
    UserError for a source without images, a score below the model's own threshold, an output that cannot be written or
    lies within the source, and annotations of other images or classes.
    """
    images = _TolerantFiles.find(source)
    require_score(detector, score)
    root, target = images.root.resolve(), output.resolve()
    if target == root or (source.is_dir() and target.is_relative_to(root)):
        raise UserError(f"output {output} lies within {images.root}, where the images are; choose another folder")
    draw = _painter(detector, score, images, truth)
    results = detector.detect(EvalBatches(images, detector.preprocess, loader).iterate())
    results = log_progress((image.above(score) for image in results), len(images))
    results = in_order(results, range(len(images)))
    write_json_list(output / DETECTIONS, _draw_each(results, images, output, detector, draw))
    get_logger().info("written to %s: %s, images drawn: %d", output, DETECTIONS, len(images) - len(images.failures))
    if images.failures:
        first = images.failures[min(images.failures)]
        raise RunFailed(f"skipped {len(images.failures)} of {len(images)} images; the first: {first}")


def require_score(detector: Detector, score: float) -> None:
    """Raise UserError unless a score is between the detector's own threshold and 1."""
    lowest = detector.postprocess.score_threshold
    if not lowest <= score <= 1:
        raise UserError(f"score {score:g} is not between model.postprocess.score_threshold, {lowest:g}, and 1")


def as_records(detector: Detector, detections: ImageDetections) -> list[dict[str, Any]]:
    """Convert detections to JSON records [{class, category_id, score, bbox [x1, y1, x2, y2]}]."""
    rows = zip(detections.classes.tolist(), detections.scores.tolist(), detections.boxes.tolist(), strict=True)
    return [
        {"class": detector.class_names[k], "category_id": detector.category_ids[k], "score": score, "bbox": box}
        for k, score, box in rows
    ]


def _painter(detector: Detector, score: float, images: ImageFiles, truth: Path | None) -> Painter:
    """Return a function that draws the detections of an image and, if `truth` is given, its annotations on the left."""
    names = detector.class_names
    if truth is None:
        return lambda pixels, result: draw_detections(pixels, result.boxes, result.classes, result.scores, names)
    dataset = CocoDataset(str(images.root), str(truth), class_names=names, drop_empty_classes=True)
    indices = {Path(dataset.info(index).path): index for index in range(len(dataset))}
    unknown = [name for name in images.names if images.root / name not in indices]
    if unknown:
        raise UserError(
            f"{truth}: has no image {unknown[0]} (missing images: {len(unknown)} of {len(images)}); "
            "--side-by-side requires annotations of the images in --input under the same names"
        )

    def draw(pixels: np.ndarray, detections: ImageDetections) -> np.ndarray:
        path = images.root / images.names[detections.image_id]
        height, width = dataset.sizes[indices[path]].tolist()
        if pixels.shape[:2] != (height, width):
            raise UserError(f"{path} is {pixels.shape[1]}x{pixels.shape[0]}, but {width}x{height} in {truth}")
        return draw_comparison(pixels, dataset.annotations(indices[path]), detections, names, score)

    return draw


def draw_comparison(
    image: np.ndarray,
    truth: Objects,
    predicted: ImageDetections,
    class_names: Sequence[str],
    score_threshold: float = 0.5,
) -> np.ndarray:
    """Draw the annotated objects of an image and, on its right, the predictions of at least a score; both with a title.

    image [H, W, 3] uint8 RGB, boxes in its pixels. Returns [H + title, 2 W + gap, 3].
    """
    labels = [class_names[k] + " (crowd)" * bool(crowd) for k, crowd in zip(truth.classes, truth.is_crowd, strict=True)]
    shown = predicted.above(score_threshold)
    left = draw_boxes(image, truth.boxes, truth.classes, labels)
    right = draw_detections(image, shown.boxes, shown.classes, shown.scores, class_names)
    left, right = add_title(left, "truth"), add_title(right, f"predicted, score >= {score_threshold:g}")
    return side_by_side(left, right)


def _draw_each(
    results: Iterable[ImageDetections], images: _TolerantFiles, output: Path, detector: Detector, draw: Painter
) -> Iterator[dict[str, Any]]:
    """Write the visualization of each readable image, and yield its record for detections.json."""
    for image in results:
        pixels, name = images.load(image.image_id), images.names[image.image_id]
        if image.image_id in images.failures:
            get_logger().warning("skipped: %s", images.failures[image.image_id])
            continue
        write_image(output / name, draw(pixels, image))
        detections = as_records(detector, image)
        yield {"file": name, "width": pixels.shape[1], "height": pixels.shape[0], "detections": detections}
