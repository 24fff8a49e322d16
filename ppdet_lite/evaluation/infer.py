"""Detection in image files: pictures with boxes, names and scores, and detections.json."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from ppdet_lite.assembly.setup import Detector
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.coco import load_image
from ppdet_lite.data.loader import EvalBatches, Loader
from ppdet_lite.evaluation.drawing import draw_detections
from ppdet_lite.evaluation.evaluate import ImageDetections, detect, tell_progress, write_json_list
from ppdet_lite.storage.files import atomic_writer

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
DETECTIONS = "detections.json"


class ImageFile(NamedTuple):
    """One file among the images."""

    id: int  # its position
    path: str


class ImageFiles:
    """Image files below a folder, in the role of a dataset for `EvalBatches`; names are relative to the folder."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root, self.names = root, list(names)

    @classmethod
    def find(cls, source: Path) -> "ImageFiles":
        """Take one file, or all images of a folder and its sub-folders in the order of their names.

        Hidden files and folders are left out. Raises UserError if there is nothing, or no image.
        """
        if source.is_file():
            if source.suffix.lower() not in SUFFIXES:
                raise UserError(f"{source}: not an image by its name; known are {', '.join(SUFFIXES)}")
            return cls(source.parent, [source.name])
        if not source.is_dir():
            raise UserError(f"{source}: no such image or folder, correct the path")
        files = (path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        shown = (path.relative_to(source) for path in files)
        names = sorted(path.as_posix() for path in shown if not any(part.startswith(".") for part in path.parts))
        if not names:
            raise UserError(f"{source}: holds no image ({', '.join(SUFFIXES)}), correct the path")
        return cls(source, names)

    def __len__(self) -> int:
        return len(self.names)

    def info(self, index: int) -> ImageFile:
        """Return the position and path of an image."""
        return ImageFile(index, str(self.root / self.names[index]))

    def load(self, index: int) -> np.ndarray:
        """Return RGB uint8 [H, W, 3]. Raises UserError, naming the file, if it is damaged."""
        return load_image(self.info(index).path)


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


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write an RGB picture in the format that the name says, whole or not at all."""
    encoded = cv2.imencode(path.suffix, picture[..., ::-1])[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            file.write(encoded.tobytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}; free space or choose another output") from error
