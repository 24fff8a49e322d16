"""`Detector`: runs a trained model, an exported folder or an ONNX file on images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import PIL.Image  # installed with Paddle

from ppdet_lite.assembly.setup import TrainedModel, load_config, use_device
from ppdet_lite.assembly.trained import load_trained
from ppdet_lite.assembly.zoo import trained_weights
from ppdet_lite.config.checked_config import Config
from ppdet_lite.config.yaml_nodes import flow
from ppdet_lite.core.errors import UserError
from ppdet_lite.data.images.decoding import from_pillow, load_image
from ppdet_lite.data.images.files import ImageFile
from ppdet_lite.data.images.sizes import read_header
from ppdet_lite.data.loading.loader import EvalBatches, Loader
from ppdet_lite.data.loading.transforms import Batch
from ppdet_lite.deployment.description import DESCRIPTION, Description, from_folder
from ppdet_lite.deployment.detect import ImageDetections, Network, TrainedNetwork, detect
from ppdet_lite.deployment.onnx_predictor import ONNX_FILE, RUNTIMES
from ppdet_lite.deployment.predictor import GRAPH, Predictor
from ppdet_lite.modeling.amp import Precision, require_precision_support

RUN_CONFIG = "config.yml"

Image = str | Path | np.ndarray | PIL.Image.Image
EXPORT_ONNX = "write it with ppdet-lite export-model --format onnx"
INPUT = "give a path, an RGB array uint8 [H, W, 3] or a Pillow image"


class Detections(NamedTuple):
    """The detections of one image in descending order of score; D = 0 is legal."""

    boxes: np.ndarray  # [D, 4] float32 [x1, y1, x2, y2] in pixels of the given image
    scores: np.ndarray  # [D] float32
    classes: np.ndarray  # [D] int64, indices into the detector's class_names
    names: list[str]  # [D], class names

    def above(self, score: float) -> "Detections":
        """Return the detections with at least this score."""
        good = np.flatnonzero(self.scores >= score)
        return Detections(self.boxes[good], self.scores[good], self.classes[good], [self.names[i] for i in good])


class Detector:
    """Finds objects in images: `Detector.load("output/run")("photo.jpg")`.

    class_names: the classes. category_ids: their ids in the training data.
    preprocess: conversion of images to network input. postprocess: thresholds and limits of the detections.
    source: path of the model.
    """

    def __init__(self, network: Network, description: Description, source: str) -> None:
        self.network, self.source = network, source
        self.class_names, self.category_ids = list(description.class_names), list(description.category_ids)
        self.preprocess, self.postprocess = description.preprocess, description.postprocess

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: Literal["auto", "cpu", "gpu"] = "auto",
        runtime: Literal["auto", "onnxruntime", "openvino"] = "auto",
        precision: Precision | None = None,
    ) -> "Detector":
        """Read a run folder, one of its checkpoints, an exported folder, or an exported .onnx file.

        "zoo:NAME" downloads and converts published weights once, see `ppdet-lite zoo list`.

        device: where a trained model runs; auto uses a GPU if there is one. Exported models run on the CPU.
        runtime: what runs an .onnx file; auto is ONNX Runtime.
        precision: of convolutions and linear layers of a trained model on a CPU; None is its config's, by default
            float32. bfloat16 needs a processor with AMX.

        Raises UserError for anything else, and for files that are damaged or were written by another program.
        """
        source = trained_weights(source)
        if not source.exists():
            raise UserError(f"{source}: no such file or folder; give a run folder, an exported folder or an .onnx file")
        if is_exported(source):
            if device == "gpu":
                raise UserError(f"{source}: exported models run on the CPU; load the trained run for a GPU")
            if precision == "bfloat16":
                raise UserError(
                    f"{source}: exported models have their own precision; load the trained run for bfloat16"
                )
            return cls._exported(source, runtime)
        if runtime != "auto":
            raise UserError(f"{source}: not exported as ONNX, which the runtime {runtime} needs; {EXPORT_ONNX}")
        weights = f"weights={flow(str(source))}"
        overrides = [weights, f"runtime.device={device}"] + ([f"runtime.precision={precision}"] if precision else [])
        return cls._trained(load_config(_run_config(source), overrides))

    @classmethod
    def _trained(cls, config: Config) -> "Detector":
        use_device(config)
        precision = config["runtime"]["precision"]
        require_precision_support(precision, config.origin("runtime.precision"))
        return cls.from_trained(load_trained(config), precision)

    @classmethod
    def _exported(cls, source: Path, runtime: str) -> "Detector":
        file = source / ONNX_FILE if source.is_dir() else source
        if source.is_file() or (file.is_file() and (runtime != "auto" or not (source / GRAPH).exists())):
            network = RUNTIMES["onnxruntime" if runtime == "auto" else runtime](file)
            return cls(network, network.description, str(source))
        if runtime != "auto":
            raise UserError(f"{file}: no such file, which the runtime {runtime} needs; {EXPORT_ONNX}")
        description = from_folder(source)  # first: its error names an export of another program
        return cls(Predictor(source), description, str(source))

    @classmethod
    def from_trained(cls, trained: TrainedModel, precision: Precision = "float32") -> "Detector":
        """Return a detector that runs a trained model in this precision (see `load`)."""
        description = replace(Description.from_trained(trained), preprocess=trained.preprocess)
        return cls(TrainedNetwork(trained.model, precision), description, trained.source)

    @overload
    def __call__(self, images: Image, batch_size: int = 1) -> Detections: ...
    @overload
    def __call__(self, images: Sequence[Image], batch_size: int = 1) -> list[Detections]: ...
    def __call__(self, images, batch_size=1):
        """Detect objects in an image or in each image of a list, above the score threshold of `postprocess`.

        An image is the path of a file, an RGB array, uint8 [H, W, 3], or a Pillow image. The EXIF orientation of files
        and Pillow images is applied. The BGR array that cv2.imread returns is passed as image[..., ::-1].

        batch_size: the largest number of images in a batch; all images of a batch have the same padded size.

        Raises UserError for an image that cannot be read, and for an argument of any other type.
        """
        if isinstance(images, Image) or not _is_list(images):
            (detections,) = self([images])
            return detections
        dataset = _ImageList(images)
        if not len(dataset):
            return []
        batches = EvalBatches(dataset, self.preprocess, Loader(batch_size, threads=min(len(dataset) - 1, 2)))
        by_index = {detections.image_id: detections for detections in self.detect(batches.iterate())}
        return [self._with_names(by_index[index]) for index in range(len(dataset))]

    def detect(self, batches: Iterable[Batch]) -> Iterator[ImageDetections]:
        """Yield the detections of each image in batches computed with `preprocess`."""
        return detect(self.network, batches)

    def _with_names(self, detections: ImageDetections) -> Detections:
        names = [self.class_names[k] for k in detections.classes.tolist()]
        return Detections(detections.boxes, detections.scores, detections.classes, names)


class _ImageList:
    """Files and arrays as a dataset for `EvalBatches`. Pillow images are converted to arrays."""

    def __init__(self, images: Iterable[Image]) -> None:
        self._images = [_checked(image, index) for index, image in enumerate(images)]

    def __len__(self) -> int:
        return len(self._images)

    @property
    def sizes(self) -> np.ndarray:
        """[N, 2] int32 (h, w); (1, 1) for a file that is not an image, for which `load` raises an error."""
        return np.array([_size(image) for image in self._images], np.int32)

    def info(self, index: int) -> ImageFile:
        """Return the index of an image, and its path or a description of the array."""
        image = self._images[index]
        return ImageFile(index, f"image {index}" if isinstance(image, np.ndarray) else str(image))

    def load(self, index: int) -> np.ndarray:
        """Return RGB uint8 [H, W, 3]. Raises UserError, naming the file, if it is damaged."""
        image = self._images[index]
        return image if isinstance(image, np.ndarray) else load_image(str(image))


def select_detector(config: Config | None, model: str | Path | None, runtime: str = "auto") -> Detector:
    """Load a tool's detector: `model` (see `Detector.load`) if given, else the weights of the config.

    With `model`, only the device and the precision of the config are used.
    """
    if model is None:
        if runtime != "auto":
            raise UserError(f"--runtime {runtime} runs an .onnx file; name it with --model; {EXPORT_ONNX}")
        return Detector._trained(config)
    if config is not None and config["weights"] is not None:
        raise UserError(f"{config.origin('weights')}: both weights and --model {model} are given; remove one")
    if config is None:
        return Detector.load(model, runtime=runtime)
    settings = config["runtime"]
    precision = None if settings["precision"] == "float32" else settings["precision"]
    return Detector.load(model, settings["device"], runtime, precision)


def is_exported(source: Path) -> bool:
    """Return whether a path is an exported model, judged by file names."""
    if source.is_file():
        return source.suffix == ".onnx"
    return any((source / name).is_file() for name in (GRAPH, DESCRIPTION, ONNX_FILE))


def _run_config(source: Path) -> Path:
    """Return the config file for a run folder, its `checkpoints` folder or one checkpoint."""
    folders = [source, *source.resolve().parents[:2]] if source.is_dir() else []
    for folder in folders:
        if (folder / RUN_CONFIG).is_file():
            return folder / RUN_CONFIG
    raise UserError(
        f"{source}: not a run folder ({RUN_CONFIG}), an exported folder ({GRAPH}, {DESCRIPTION}) or an .onnx file; "
        "for a bare weights file, give its config: -c CONFIG -o weights=..."
    )


def _size(image: str | Path | np.ndarray) -> tuple[int, int]:
    if isinstance(image, np.ndarray):
        return image.shape[:2]
    header = read_header(image)
    return (1, 1) if header is None else header[:2]


def _is_list(images: Any) -> bool:
    """Return whether an argument contains images; a tensor or a table, which has dimensions, does not."""
    if isinstance(images, bytes | bytearray | Mapping | Set) or getattr(images, "ndim", 1) != 1:
        return False
    return isinstance(images, Iterable)


def _checked(image: Any, index: int) -> str | Path | np.ndarray:
    """Return a path or an array, converted from a Pillow image. Raises UserError for anything else."""
    if isinstance(image, PIL.Image.Image):
        try:
            image = from_pillow(image, f"image {index}")
        except ValueError as error:
            raise UserError(f"image {index} cannot be converted: {error}") from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise UserError(f"image {index} is {image.dtype} {list(image.shape)}; {INPUT}")
    elif not isinstance(image, str | Path):
        raise UserError(f"image {index} is of type {type(image).__name__}; {INPUT}")
    elif Path(image).is_dir():
        raise UserError(f"{image} is a folder; give a list of its images")
    return image
