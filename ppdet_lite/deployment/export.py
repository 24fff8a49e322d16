"""Export of a detector as a static graph, in PaddleDetection's deployment format, as ONNX or both.

The Paddle format consists of model.json and model.pdiparams (inputs image, im_shape, scale_factor; outputs rows and
counts, see `Predictor`) and infer_cfg.yml, which PaddleDetection's deploy/python/infer.py can read. ONNX is one file,
model.onnx, with the same inputs and outputs and its description as metadata. An export is only kept if its detections
agree with those of the trained model.
"""

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.static import InputSpec

from ppdet_lite.assembly.check_data import dataset_files
from ppdet_lite.assembly.setup import TrainedModel, build_dataset
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.files import ImageFiles
from ppdet_lite.data.loading.transforms import Preprocess, collate, image_sample
from ppdet_lite.data.synthetic.shapes import scene
from ppdet_lite.deployment import onnx_export
from ppdet_lite.deployment.description import DESCRIPTION, Description
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.deployment.onnx_predictor import ONNX_FILE
from ppdet_lite.deployment.predictor import GRAPH, WEIGHTS
from ppdet_lite.modeling.box_head import BoxPredictor, ConvFCHead, Res5Head, TwoFCHead
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.fpn import FPN
from ppdet_lite.modeling.neck import Reduction
from ppdet_lite.modeling.postprocess import Postprocess, recover_sizes
from ppdet_lite.modeling.resnet import ResNet
from ppdet_lite.modeling.rpn import RPN
from ppdet_lite.storage.files import replace_folder, require_space

if TYPE_CHECKING:
    from ppdet_lite.deployment.int8 import Int8

FILES = {"paddle": (GRAPH, WEIGHTS, DESCRIPTION), "onnx": (ONNX_FILE,)}
FILES["both"] = FILES["paddle"] + FILES["onnx"]
BOX_TOLERANCES = {"paddle": 1e-3, "onnx": 1e-2}  # pixels
SCORE_TOLERANCE = 1e-4  # probability
BATCH_SIZES = (1, 2)
SYNTHETIC_IMAGES = 4
FORBIDDEN = ("generate_proposals", "fpn_proposals", "anchor_generator", "prior_box", "_interp")  # not in ONNX or oneDNN
INPUTS = (
    InputSpec([-1, 3, -1, -1], "float32", "image"),
    InputSpec([-1, 2], "float32", "im_shape"),
    InputSpec([-1, 2], "float32", "scale_factor"),
)

# Paddle rewrites the source of each function that it traces, to find branches and loops that depend on tensors. The
# forward of these has none, also in what it calls; tracing it unchanged saves almost half the time of tracing.
WITHOUT_BRANCHES = (ResNet, FPN, Reduction, RPN, TwoFCHead, ConvFCHead, Res5Head, BoxPredictor)

log = get_logger()


class Agreement(NamedTuple):
    """The largest differences between the detections of the trained and the exported model."""

    images: int
    detections: int  # pairs of a trained and an exported detection
    box_gap: float  # in original pixels
    score_gap: float


@paddle.jit.not_to_static  # otherwise Paddle would try to convert it too, and warn about its decorator
@contextlib.contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Prevent Paddle from recording a stack trace for each traced operator, which takes a quarter of the tracing time.

    The traces are not saved with the graph. Errors keep theirs: Paddle reads it after the block has ended.
    """
    limit = getattr(sys, "tracebacklimit", None)
    sys.tracebacklimit = 0
    try:
        yield
    finally:
        if limit is None:
            del sys.tracebacklimit
        else:
            sys.tracebacklimit = limit


class Deployed(nn.Layer):
    """A detector with the inputs (RGB) and outputs that PaddleDetection's deployment code expects.

    preprocess: the preprocessing of the model's own input.
    """

    def __init__(self, model: FasterRCNN, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        self.flip_channels, self.rounds_sizes = preprocess.channels == "bgr", preprocess.sizing != "unrounded"

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and counts of `Predictor.__call__`.

        No input contains the original size, to which boxes are clipped. It is recovered from im_shape (h, w), exactly
        if that is original size * scale. So im_shape may have a fraction of a pixel; the size of the network input is
        im_shape rounded, and at least 1, unless the sizing is `unrounded`. PaddleDetection's code passes whole numbers.
        """
        image = image.flip(axis=1) if self.flip_channels else image
        image_sizes = im_shape
        if self.rounds_sizes:
            image_sizes = paddle.maximum(paddle.floor(im_shape + 0.5), paddle.ceil(im_shape.clip(max=1.0)))
        with _no_tracebacks():
            original_sizes = recover_sizes(im_shape, scale_factor)
            detections = self.model(image, image_sizes, scale_factor, original_sizes=original_sizes)
        columns = [detections.classes.unsqueeze(1), detections.scores.unsqueeze(1), detections.boxes]
        # concatenated in float64, which oneDNN does not support: its float32 kernel crashes without rows
        return paddle.concat([c.astype("float64") for c in columns], axis=1).astype("float32"), detections.counts


def export(
    trained: TrainedModel,
    folder: Path,
    images: Sequence[Path] | None = None,
    format: Literal["paddle", "onnx", "both"] = "paddle",
    int8: "Int8 | None" = None,
) -> Agreement:
    """Export a model, compare its detections with the trained model's (see `compare`), and write the folder.

    images: the files to compare on; None generates synthetic images. For two formats, the larger differences are
        returned.
    int8: quantize the ONNX file after the comparison.

    The folder is written completely or not at all, and replaces an earlier export. Raises UserError if it contains
    other files or another format, cannot be written, or if a package is missing. Raises RunFailed, with the image and
    the difference, if detections differ, with the operator's name if it cannot be converted to ONNX, and if the
    quantized file detects worse than `int8` accepts.
    """
    folder = Path(folder).resolve()
    _check_folder(folder, format)
    if format != "paddle":
        onnx_export.require_packages()
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(trained, partial, format)
        agreements = [
            _check_agreement(trained, source, images, kind)
            for kind, source in (("paddle", partial), ("onnx", partial / ONNX_FILE))
            if format in (kind, "both")
        ]
        if int8 is not None:
            quantize_file(trained, partial / ONNX_FILE, int8)
        replace_folder(partial, folder, partial.with_suffix(".old"))
        log.info("exported to %s: %s", folder, ", ".join(FILES[format]))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; free space or choose another --output"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return max(agreements, key=lambda agreement: agreement.box_gap)


def quantize_file(trained: TrainedModel, file: Path, int8: "Int8") -> None:
    """Replace a model's ONNX file by a quantized one, see `int8.quantize`."""
    from ppdet_lite.deployment.int8 import quantize  # imports onnxruntime

    quantize(
        file, {weight.name: name.removesuffix(".weight") for name, weight in trained.model.named_parameters()}, int8
    )


def _check_folder(folder: Path, format: str) -> None:
    """Raise UserError if replacing the folder by an export would delete other files or another format."""
    if not folder.exists():
        return
    names = set() if folder.is_file() else {path.name for path in folder.iterdir()}
    if folder.is_file() or names - set(FILES["both"]):
        raise UserError(f"{folder} exists and is not an exported model; choose another --output")
    if lost := sorted(names - set(FILES[format])):
        raise UserError(f"{folder} contains {lost[0]} of another format; add --format both, or choose another --output")


def _write(trained: TrainedModel, folder: Path, format: str) -> None:
    """Write the files of an export into a folder, without comparing them."""
    description = Description.from_trained(trained)
    save_graph(trained.model, folder, trained.preprocess)
    if format != "paddle":
        onnx_export.save_onnx(folder, folder / ONNX_FILE, description)
    if format == "onnx":
        (folder / GRAPH).unlink()
        (folder / WEIGHTS).unlink()
    else:
        (folder / DESCRIPTION).write_text(description.to_yaml(), encoding="utf-8")


def _check_agreement(trained: TrainedModel, source: Path, images: Sequence[Path] | None, format: str) -> Agreement:
    """Compare an exported model with the trained one, and log the result."""
    agreement = compare(Detector.from_trained(trained), Detector.load(source), images, BOX_TOLERANCES[format])
    message = (
        "%s: same detections on %d images in batches of 1 and 2: %d pairs, boxes within %.1e px, scores within %.1e"
    )
    log.info(message, format, *agreement)
    if agreement.detections == 0:
        log.warning("no detections to compare; use --images to give images that contain objects")
    return agreement


def calibration_images(config: Config, source: Path | None, count: int) -> list[Path]:
    """Return up to `count` evenly spaced image files of `source`, or of the training data if it is None."""
    try:
        return _evenly_spaced(build_dataset(config, "train") if source is None else ImageFiles.find(source), count)
    except UserError as error:
        hint = "" if source else "; choose other images with --calibration-images"
        raise UserError(f"no images to calibrate int8 on: {error}{hint}") from error


def choose_images(config: Config, source: Path | None, count: int) -> list[Path] | None:
    """Return up to `count` evenly spaced image files of `source`, or of the validation images if it is None.

    Of several validation sets it takes the first. Returns None if the folder of the validation images contains none;
    raises UserError if `source` contains none.
    """
    if source is None:
        folder = next(Path(images) for name, images, _ in dataset_files(config["data"]) if name.startswith("val"))
        try:
            files = ImageFiles.find(folder)
        except UserError:
            log.info("no images in %s; comparing on synthetic images instead (choose others with --images)", folder)
            return None
    else:
        files = ImageFiles.find(source)
    return _evenly_spaced(files, count)


def _evenly_spaced(files: ImageFiles | CocoDataset, count: int) -> list[Path]:
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    return [Path(files.info(i).path) for i in chosen.tolist()]


def save_graph(model: FasterRCNN, folder: Path, preprocess: Preprocess = Preprocess()) -> None:
    """Trace a model in evaluation mode and write its graph. preprocess: the preprocessing of the model's input.

    Raises RunFailed if the graph has an operator that oneDNN or ONNX does not support, OSError on a full disk.
    """
    deployed = Deployed(model, preprocess)
    deployed.eval()
    for part in WITHOUT_BRANCHES:
        paddle.jit.not_to_static(part.forward)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensor do not have 'place'")  # caused by Paddle's full_like
        static = paddle.jit.to_static(deployed, input_spec=list(INPUTS), full_graph=True)
        paddle.jit.save(static, str(folder / Path(GRAPH).stem))
    require_space(folder)
    if bad := sorted(name for name in graph_operators(folder) if any(part in name for part in FORBIDDEN)):
        raise RunFailed(f"the exported graph has {', '.join(bad)}, for which ONNX or oneDNN has no operator")


def graph_operators(folder: Path) -> set[str]:
    """Return the operator names in an exported graph, such as "pd_op.conv2d", including those in branches and loops."""

    def names(block: Any) -> Iterator[str]:
        for operator in block.ops:
            yield operator.name()
            for inner in operator.blocks():
                yield from names(inner)

    layer = paddle.jit.load(str(folder / Path(GRAPH).stem))
    program = layer.program()  # kept alive while its blocks are in use
    return set(names(program.global_block()))


def compare(
    trained: Detector,
    exported: Detector,
    images: Sequence[Path] | None = None,
    box_tolerance: float = BOX_TOLERANCES["paddle"],
) -> Agreement:
    """Compare the detections of a trained and an exported model on images, in batches of 1 and 2.

    images: None generates synthetic images. An image of size 0 x 0, which has no detections, is added.

    Raises RunFailed at the first image whose scores differ by more than SCORE_TOLERANCE or whose boxes differ by more
    than box_tolerance, in pixels of the image or of the network input, whichever are larger.
    """
    if images:
        names, arrays = [str(path) for path in images], (load_image(path) for path in images)
    else:
        names = [f"synthetic image {i}" for i in range(SYNTHETIC_IMAGES)]
        arrays = (scene(np.random.default_rng(i), size=400 + 100 * i)[0] for i in range(SYNTHETIC_IMAGES))
    samples = [image_sample(array, trained.preprocess, i) for i, array in enumerate(arrays)]
    empty = np.zeros(2, np.float32)
    samples.append(samples[0] | {"image_id": len(names), "image_size": empty, "original_size": empty})
    names.append("an image of size 0 x 0")
    paired, gaps = 0, []
    for size in BATCH_SIZES:
        for start in range(0, len(samples), size):
            batch = [samples[(start + k) % len(samples)] for k in range(size)]
            results = (detector.detect([collate(batch, detector.preprocess)]) for detector in (trained, exported))
            for sample, expected, actual in zip(batch, *results, strict=True):
                tolerance = box_tolerance / min(1.0, sample["scale"].min())
                try:
                    count, *gap = _pair(trained, expected, actual, tolerance)
                except RunFailed as error:
                    raise RunFailed(f"{names[sample['image_id']]}, batch size {size}: {error}") from error
                paired += count
                gaps.append(gap)
    return Agreement(len(samples) - 1, paired, *np.max(gaps, axis=0).tolist())


def _pair(
    detector: Detector, trained: ImageDetections, exported: ImageDetections, tolerance: float
) -> tuple[int, float, float]:
    """Pair the detections of an image; return the number of pairs and the largest differences of boxes and of scores.

    Their order does not matter: detections of equal score may swap. Raises RunFailed for a detection without partner,
    unless rounding may have removed the partner: its score is within SCORE_TOLERANCE of the score threshold or, if the
    image has `max_detections`, of the lowest score.
    """
    box_gaps = np.abs(trained.boxes[:, None] - exported.boxes).max(axis=2)  # [D, D']
    score_gaps = np.abs(trained.scores[:, None] - exported.scores)
    same_class = trained.classes[:, None] == exported.classes
    pairs = same_class & (box_gaps <= tolerance) & (score_gaps <= SCORE_TOLERANCE)
    for name, results, others, unpaired in (
        ("trained", trained, exported, ~pairs.any(axis=1)),
        ("exported", exported, trained, ~pairs.any(axis=0)),
    ):
        if (unpaired := unpaired & ~_near_limit(results.scores, detector.postprocess)).any():
            k, classes = int(unpaired.argmax()), detector.class_names
            detection = f"{classes[results.classes[k]]} {results.scores[k]:.5f} at {results.boxes[k].tolist()}"
            raise RunFailed(f"only the {name} model finds {detection}; {_nearest(results, k, others)}")
    return int(pairs.sum()), box_gaps[pairs].max(initial=0.0), score_gaps[pairs].max(initial=0.0)


def _near_limit(scores: np.ndarray, postprocess: Postprocess) -> np.ndarray:
    """Return a mask [D] of the scores at which rounding decides whether a detection is returned."""
    full = len(scores) == postprocess.max_detections
    return scores <= (scores.min() if full else postprocess.score_threshold) + SCORE_TOLERANCE


def _nearest(results: ImageDetections, k: int, others: ImageDetections) -> str:
    """Describe how far the k-th detection is from the nearest one of its class in `others`."""
    rows = np.flatnonzero(others.classes == results.classes[k])
    if not rows.size:
        return "the other model finds none of that class"
    gaps = np.abs(others.boxes[rows] - results.boxes[k]).max(axis=1)
    score_gap = abs(others.scores[rows[gaps.argmin()]] - results.scores[k])
    return f"the other model's nearest differs by {gaps.min():.2g} px and {score_gap:.2g} in score"
