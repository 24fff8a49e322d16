"""Detection in image files: pictures with boxes, names and scores, and detections.json."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ppdet_lite.assembly.setup import Detector
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.image_files import ImageFiles
from ppdet_lite.data.loader import EvalBatches, Loader
from ppdet_lite.evaluation.detect import ImageDetections, detect, in_order, tell_progress
from ppdet_lite.evaluation.drawing import draw_detections, write_picture
from ppdet_lite.storage.files import write_json_list

DETECTIONS = "detections.json"


def infer(detector: Detector, source: Path, output: Path, loader: Loader, score: float = 0.5) -> None:
    """Detect in an image, or in all images of a folder and its sub-folders.

    Writes below `output`, under each image's own name and sub-folder, a picture with the detections of at least
    `score`; and detections.json, a list of {file, width, height, detections: [{class, category_id, score, bbox}]},
    bbox [x1, y1, x2, y2] in the pixels of the image as its EXIF orientation turns it. Every file appears whole or not
    at all, detections.json last.

    Raises UserError for a source without images, an image that is damaged, a score below the model's own threshold,
    and an output that cannot be written or would mix with the source.
    """
    images = ImageFiles.find(source)
    lowest = detector.model.postprocess.score_threshold
    if not lowest <= score <= 1:
        raise UserError(f"score {score:g} is not between model.postprocess.score_threshold, {lowest:g}, and 1")
    beside, target = images.root.resolve(), output.resolve()
    if target == beside or (source.is_dir() and target.is_relative_to(beside)):
        raise UserError(f"output {output} lies within {images.root}, where the images are; choose another folder")
    found = detect(detector.model, EvalBatches(images, detector.preprocess, loader).iterate())
    found = tell_progress((_above(score, image) for image in found), len(images))
    found = in_order(found, range(len(images)))
    write_json_list(output / DETECTIONS, _draw_each(found, images, output, detector))
    get_logger().info("%d pictures and %s written into %s", len(images), DETECTIONS, output)


def _above(score: float, image: ImageDetections) -> ImageDetections:
    good = image.scores >= score
    return ImageDetections(image.image_id, image.boxes[good], image.scores[good], image.classes[good])


def _draw_each(
    found: Iterable[ImageDetections], images: ImageFiles, output: Path, detector: Detector
) -> Iterator[dict[str, Any]]:
    """Write the picture of each image, and yield what detections.json says of it."""
    for image in found:
        pixels, name = images.load(image.image_id), images.names[image.image_id]
        picture = draw_detections(pixels, image.boxes, image.classes, image.scores, detector.class_names)
        write_picture(output / name, picture)
        rows = zip(image.classes.tolist(), image.scores.tolist(), image.boxes.tolist(), strict=True)
        detections = [
            {"class": detector.class_names[k], "category_id": detector.category_ids[k], "score": score, "bbox": box}
            for k, score, box in rows
        ]
        yield {"file": name, "width": pixels.shape[1], "height": pixels.shape[0], "detections": detections}
