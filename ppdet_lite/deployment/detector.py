"""A detector to be used: a trained run, an exported folder or an ONNX file; images in, detections out."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, overload

import numpy as np

from ppdet_lite.assembly.setup import TrainedModel, load_config, load_trained, use_device
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.files import ImageFile
from ppdet_lite.data.images.sizes import read_header
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.data.loading.transforms import Batch
from ppdet_lite.deployment.description import DESCRIPTION, Description, from_folder
from ppdet_lite.deployment.detect import ImageDetections, Network, TrainedNetwork, detect
from ppdet_lite.deployment.onnx_predictor import ONNX_FILE, OnnxPredictor
from ppdet_lite.deployment.predictor import GRAPH, Predictor

RUN_CONFIG = "config.yml"

Image = str | Path | np.ndarray


class Detections(NamedTuple):
    """What was found in an image, best first; D = 0 is legal."""

    boxes: np.ndarray  # [D, 4] float32 [x1, y1, x2, y2] in pixels of the image as it was given
    scores: np.ndarray  # [D] float32
    classes: np.ndarray  # [D] int64, places in the detector's class_names
    names: list[str]  # [D], of the classes

    def above(self, score: float) -> "Detections":
        """Those of at least a score."""
        good = np.flatnonzero(self.scores >= score)
        return Detections(self.boxes[good], self.scores[good], self.classes[good], [self.names[i] for i in good])


class Detector:
    """Finds objects in images: `Detector.load("output/run")("photo.jpg")`.

    class_names: what it finds; category_ids: their ids in the data it was trained on.
    preprocess, postprocess: how images become network input, and by what boxes are left out.
    source: where it was read from.
    """

    def __init__(self, network: Network, description: Description, source: str) -> None:
        self.network, self.source = network, source
        self.class_names, self.category_ids = list(description.class_names), list(description.category_ids)
        self.preprocess, self.postprocess = description.preprocess, description.postprocess

    @classmethod
    def load(cls, source: str | Path, device: Literal["auto", "cpu", "gpu"] = "auto") -> "Detector":
        """Read a run's folder or one of its checkpoints, an export's folder, or an exported .onnx file.

        device: where a trained model runs; auto takes a GPU if there is one. Exported ones run on the CPU.

        Raises UserError for anything else, and for what is damaged or of another program.
        """
        source = Path(source)
        if not source.exists():
            raise UserError(f"{source}: no such file or folder; name a run's folder, an export's, or an .onnx file")
        if is_exported(source):
            if device == "gpu":
                raise UserError(f"{source}: exported models run on the CPU; load the trained run for a GPU")
            return cls._exported(source)
        weights = f"weights={json.dumps(str(source))}"  # quoted, as YAML wants a path with a colon
        config = load_config(_run_config(source), [weights, f"runtime.device={device}"])
        use_device(config)
        return cls.of(load_trained(config))

    @classmethod
    def _exported(cls, source: Path) -> "Detector":
        file = source / ONNX_FILE if source.is_dir() else source
        if source.is_file() or (file.is_file() and not (source / GRAPH).exists()):
            network = OnnxPredictor(file)
            return cls(network, network.description, str(source))
        description = from_folder(source)  # first: it tells what is another program's
        return cls(Predictor(source), description, str(source))

    @classmethod
    def of(cls, trained: TrainedModel) -> "Detector":
        """The detector that a trained model is."""
        description = replace(Description.of(trained), preprocess=trained.preprocess)
        return cls(TrainedNetwork(trained.model), description, trained.source)

    @overload
    def __call__(self, images: Image, batch_size: int = 1) -> Detections: ...
    @overload
    def __call__(self, images: Sequence[Image], batch_size: int = 1) -> list[Detections]: ...
    def __call__(self, images, batch_size=1):
        """Detect in an image, or in each of a list of them; everything above the model's own score threshold.

        An image is a file's path, turned as its EXIF orientation says, or an array, uint8 [H, W, 3], RGB: what
        cv2.imread returns is BGR, and goes in as image[..., ::-1].

        batch_size: images of one size that the network takes at a time.

        Raises UserError for an image that cannot be read and an array of another shape or type.
        """
        if isinstance(images, Image):
            (found,) = self([images])
            return found
        pictures = _Images(images)
        if not len(pictures):
            return []
        batches = EvalBatches(pictures, self.preprocess, Loader(batch_size, threads=min(len(pictures) - 1, 2)))
        by_place = {found.image_id: found for found in self.detect(batches.iterate())}
        return [self._named(by_place[place]) for place in range(len(pictures))]

    def detect(self, batches: Iterable[Batch]) -> Iterator[ImageDetections]:
        """Yield the detections of each image of batches that were made by `preprocess`."""
        return detect(self.network, batches)

    def _named(self, found: ImageDetections) -> Detections:
        names = [self.class_names[k] for k in found.classes.tolist()]
        return Detections(found.boxes, found.scores, found.classes, names)


class _Images:
    """Files and arrays in the role of a dataset for `EvalBatches`."""

    def __init__(self, images: Sequence[Image]) -> None:
        self._images = list(images)
        for place, image in enumerate(self._images):
            _check(image, place)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def sizes(self) -> np.ndarray:
        """[N, 2] int32 (h, w); 1 of a file that is no image, which `load` then tells."""
        return np.array([_size(image) for image in self._images], np.int32)

    def info(self, index: int) -> ImageFile:
        """Return the position of an image, and its path or what stands for it."""
        image = self._images[index]
        return ImageFile(index, f"image {index}" if isinstance(image, np.ndarray) else str(image))

    def load(self, index: int) -> np.ndarray:
        """Return RGB uint8 [H, W, 3]. Raises UserError, naming the file, if it is damaged."""
        image = self._images[index]
        return image if isinstance(image, np.ndarray) else load_image(str(image))


def chosen(config: Config | None, model: Path | None) -> Detector:
    """The detector that a tool is to use: `model` as `Detector.load` reads it, or else what a config's weights name."""
    if model is None:
        use_device(config)
        return Detector.of(load_trained(config))
    if config is not None and config["weights"] is not None:
        raise UserError(f"{config.origin('weights')}: weights, and --model {model}: name one of them")
    return Detector.load(model)


def is_exported(source: Path) -> bool:
    """Whether a path is an exported model, by its files' names."""
    if source.is_file():
        return source.suffix == ".onnx"
    return any((source / name).is_file() for name in (GRAPH, DESCRIPTION, ONNX_FILE))


def _run_config(source: Path) -> Path:
    """The config of a run's folder, of its checkpoints, or of one of them."""
    folders = [source, *source.resolve().parents[:2]] if source.is_dir() else []
    for folder in folders:
        if (folder / RUN_CONFIG).is_file():
            return folder / RUN_CONFIG
    raise UserError(
        f"{source}: neither a run's folder ({RUN_CONFIG}) nor an export's ({GRAPH}, {DESCRIPTION}) nor an .onnx file; "
        "weights by themselves need their config: -c CONFIG -o weights=..."
    )


def _size(image: Image) -> tuple[int, int]:
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    header = read_header(image)
    return (1, 1) if header is None else header[:2]


def _check(image: Image, place: int) -> None:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            what = f"{image.dtype} {list(image.shape)}"
            raise UserError(f"image {place} is {what}; an array has to be uint8 [H, W, 3], RGB")
    elif not isinstance(image, str | Path):
        raise UserError(f"image {place} is a {type(image).__name__}; give a path or an RGB array, uint8 [H, W, 3]")
    elif Path(image).is_dir():
        raise UserError(f"{image} is a folder; give a list of its images")
