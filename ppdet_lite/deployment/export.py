"""Export: a detector as a static graph in PaddleDetection's deployment format or ONNX, compared before it is kept.

A folder holds model.json and model.pdiparams (inputs image, im_shape, scale_factor; outputs rows and counts, see
`Predictor`) and infer_cfg.yml, which PaddleDetection's deploy/python/infer.py reads; or model.onnx, with the same
inputs and outputs, which describes itself; or all of these.
"""

import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.static import InputSpec

from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.config.checked_config import Config
from ppdet_lite.core.errors import RunFailed, UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.images.decoding import load_image
from ppdet_lite.data.images.files import ImageFiles
from ppdet_lite.data.loading.transforms import collate, image_sample
from ppdet_lite.data.synthetic.shapes import scene
from ppdet_lite.deployment import onnx_export
from ppdet_lite.deployment.description import DESCRIPTION, Description
from ppdet_lite.deployment.detect import ImageDetections
from ppdet_lite.deployment.detector import Detector
from ppdet_lite.deployment.onnx_predictor import ONNX_FILE
from ppdet_lite.deployment.predictor import GRAPH, WEIGHTS
from ppdet_lite.modeling.faster_rcnn import FasterRCNN
from ppdet_lite.modeling.postprocess import Postprocess
from ppdet_lite.storage.files import replace_folder, require_space

FILES = {"paddle": (GRAPH, WEIGHTS, DESCRIPTION), "onnx": (ONNX_FILE,)}
FILES["both"] = FILES["paddle"] + FILES["onnx"]
BOX_TOLERANCES = {"paddle": 1e-3, "onnx": 1e-2}  # pixels
SCORE_TOLERANCE = 1e-4  # probability
BATCH_SIZES = (1, 2)
DRAWN_IMAGES = 4
FORBIDDEN = ("generate_proposals", "fpn_proposals", "anchor_generator", "prior_box", "_interp")  # not for ONNX, oneDNN
INPUTS = (
    InputSpec([-1, 3, -1, -1], "float32", "image"),
    InputSpec([-1, 2], "float32", "im_shape"),
    InputSpec([-1, 2], "float32", "scale_factor"),
)

log = get_logger()


class Agreement(NamedTuple):
    """How far the exported model and the trained one are apart."""

    images: int
    detections: int  # pairs of one detection of each
    box_gap: float  # the largest, in original pixels
    score_gap: float


@paddle.jit.not_to_static  # it would be rewritten as what is traced, with a warning about its decorator
@contextlib.contextmanager
def _no_tracebacks() -> Iterator[None]:
    """Meanwhile Paddle finds no stack to note for each operator it traces: a quarter of the time, and none is saved.

    Errors are told with theirs, as Paddle looks at them once they have left here.
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
    """A detector with the inputs and outputs that PaddleDetection's deployment code expects, which feeds RGB.

    channels: the order that the model itself takes.
    """

    def __init__(self, model: FasterRCNN, channels: str = "rgb") -> None:
        super().__init__()
        self.model, self.flips = model, channels == "bgr"

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> tuple[Tensor, Tensor]:
        """See `Predictor.__call__`."""
        image = image.flip(axis=1) if self.flips else image
        with _no_tracebacks():
            found = self.model(image, im_shape, scale_factor)
        columns = [found.classes.unsqueeze(1), found.scores.unsqueeze(1), found.boxes]
        # joined in float64, for which oneDNN has no kernel: its own crashes when there is no row
        return paddle.concat([c.astype("float64") for c in columns], axis=1).astype("float32"), found.counts


def export(
    trained: TrainedModel,
    folder: Path,
    images: Sequence[Path] | None = None,
    format: Literal["paddle", "onnx", "both"] = "paddle",
) -> Agreement:
    """Write a model for deployment, once its graph agrees with it on images, each alone and in pairs.

    images: the files to compare on; None draws some. Of two formats the gaps of the worse one are returned.

    The folder appears complete or not at all, in place of an earlier export. Raises UserError if it holds anything
    else, another format too, or cannot be written, and if a package is missing; RunFailed, with image and difference,
    if graph and model disagree, and with the operator if ONNX has none like it.
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
            _agree(trained, source, images, kind)
            for kind, source in (("paddle", partial), ("onnx", partial / ONNX_FILE))
            if format in (kind, "both")
        ]
        replace_folder(partial, folder, partial.with_suffix(".old"))
        log.info("exported to %s: %s", folder, ", ".join(FILES[format]))
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; free space or choose another --output"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return max(agreements, key=lambda agreement: agreement.box_gap)


def _check_folder(folder: Path, format: str) -> None:
    """Raise UserError if a folder exists and writing an export in its place would lose something."""
    if not folder.exists():
        return
    names = set() if folder.is_file() else {path.name for path in folder.iterdir()}
    if folder.is_file() or names - set(FILES["both"]):
        raise UserError(f"{folder} exists and is not an exported model; choose another --output")
    if lost := sorted(names - set(FILES[format])):
        raise UserError(f"{folder} has {lost[0]} of another format; add --format both, or choose another --output")


def _write(trained: TrainedModel, folder: Path, format: str) -> None:
    """Write a model's files, not compared yet, into a folder."""
    description = Description.of(trained)
    save_graph(trained.model, folder, trained.preprocess.channels)
    if format != "paddle":
        onnx_export.save_onnx(folder, folder / ONNX_FILE, description)
    if format == "onnx":
        (folder / GRAPH).unlink()
        (folder / WEIGHTS).unlink()
    else:
        (folder / DESCRIPTION).write_text(description.to_yaml(), encoding="utf-8")


def _agree(trained: TrainedModel, source: Path, images: Sequence[Path] | None, format: str) -> Agreement:
    agreement = compare(Detector.of(trained), Detector.load(source), images, BOX_TOLERANCES[format])
    log.info(
        "%s: same detections on %d images, alone and in pairs: %d in all, boxes within %.1e px, scores within %.1e",
        *(format, *agreement),
    )
    if agreement.detections == 0:
        log.warning("neither found anything, so little was compared; name better images by --images")
    return agreement


def choose_images(config: Config, source: Path | None, count: int) -> list[Path] | None:
    """Up to `count` image files, evenly spread, of a source or else of the validation images; None if there are none.

    Raises UserError if a source is given and has no image.
    """
    if source is None:
        folder = Path(config["data"]["val"]["images"])
        try:
            files = ImageFiles.find(folder)
        except UserError:
            log.info("no images in %s; comparing on drawn ones instead (name others by --images)", folder)
            return None
    else:
        files = ImageFiles.find(source)
    chosen = np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int)
    return [Path(files.info(i).path) for i in chosen.tolist()]


def save_graph(model: FasterRCNN, folder: Path, channels: str = "rgb") -> None:
    """Trace a model in evaluation mode, which takes images of that channel order, and write its graph.

    Raises RunFailed if the graph has an operator that oneDNN or ONNX cannot take, OSError on a full disk.
    """
    deployed = Deployed(model, channels)
    deployed.eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tensor do not have 'place'")  # Paddle's own full_like asks for it
        static = paddle.jit.to_static(deployed, input_spec=list(INPUTS), full_graph=True)
        paddle.jit.save(static, str(folder / Path(GRAPH).stem))
    require_space(folder)
    if bad := sorted(name for name in operators(folder) if any(part in name for part in FORBIDDEN)):
        raise RunFailed(f"the exported graph has {', '.join(bad)}, for which there is no ONNX or no oneDNN operator")


def operators(folder: Path) -> set[str]:
    """The operator names of an exported graph, such as "pd_op.conv2d", those in branches and loops included."""

    def names(block: Any) -> Iterator[str]:
        for operator in block.ops:
            yield operator.name()
            for inner in operator.blocks():
                yield from names(inner)

    layer = paddle.jit.load(str(folder / Path(GRAPH).stem))
    program = layer.program()  # has to outlive its blocks
    return set(names(program.global_block()))


def compare(
    trained: Detector,
    exported: Detector,
    images: Sequence[Path] | None = None,
    box_tolerance: float = BOX_TOLERANCES["paddle"],
) -> Agreement:
    """Run a detector as it was trained and as it was exported on images, each alone and in pairs; None draws some.

    One more is added in which nothing can be found, as it has no extent.

    Raises RunFailed at the first image whose scores differ by more than SCORE_TOLERANCE, or whose boxes by more than
    box_tolerance pixels of the image or of the network input, whichever are larger.
    """
    if images:
        names, pictures = [str(path) for path in images], (load_image(path) for path in images)
    else:
        names = [f"drawn image {i}" for i in range(DRAWN_IMAGES)]
        pictures = (scene(np.random.default_rng(i), size=400 + 100 * i)[0] for i in range(DRAWN_IMAGES))
    samples = [image_sample(picture, trained.preprocess, i) for i, picture in enumerate(pictures)]
    samples.append(samples[0] | {"image_id": len(names), "image_size": np.zeros(2, np.float32)})
    names.append("an image without extent")
    paired, gaps = 0, []
    for size in BATCH_SIZES:
        for start in range(0, len(samples), size):
            chosen = [samples[(start + k) % len(samples)] for k in range(size)]
            found = (way.detect([collate(chosen, way.preprocess)]) for way in (trained, exported))
            for sample, one, other in zip(chosen, *found, strict=True):
                tolerance = box_tolerance / min(1.0, sample["scale"].min())
                try:
                    count, *gap = _pair(trained, one, other, tolerance)
                except RunFailed as error:
                    raise RunFailed(f"{names[sample['image_id']]}, batch size {size}: {error}") from error
                paired += count
                gaps.append(gap)
    return Agreement(len(samples) - 1, paired, *np.max(gaps, axis=0).tolist())


def _pair(
    detector: Detector, trained: ImageDetections, exported: ImageDetections, tolerance: float
) -> tuple[int, float, float]:
    """Pair the detections of an image: the number of pairs, and the largest differences of boxes and scores in one.

    The order does not matter: equal scores may swap places. RunFailed if a detection is left over, unless its score is
    so near the threshold, or near the last of a full set, that rounding decides whether it is in.
    """
    box_gaps = np.abs(trained.boxes[:, None] - exported.boxes).max(axis=2)  # [D, D']
    score_gaps = np.abs(trained.scores[:, None] - exported.scores)
    same_class = trained.classes[:, None] == exported.classes
    pairs = same_class & (box_gaps <= tolerance) & (score_gaps <= SCORE_TOLERANCE)
    for name, found, others, alone in (
        ("trained", trained, exported, ~pairs.any(axis=1)),
        ("exported", exported, trained, ~pairs.any(axis=0)),
    ):
        if (alone := alone & ~_at_the_edge(found.scores, detector.postprocess)).any():
            k = int(alone.argmax())
            what = f"{detector.class_names[found.classes[k]]} {found.scores[k]:.5f} at {found.boxes[k].tolist()}"
            raise RunFailed(f"only the {name} model finds {what}; {_nearest(found, k, others)}")
    return int(pairs.sum()), box_gaps[pairs].max(initial=0.0), score_gaps[pairs].max(initial=0.0)


def _at_the_edge(scores: np.ndarray, postprocess: Postprocess) -> np.ndarray:
    full = len(scores) == postprocess.max_detections
    return scores <= (scores.min() if full else postprocess.score_threshold) + SCORE_TOLERANCE


def _nearest(found: ImageDetections, k: int, others: ImageDetections) -> str:
    """How far the k-th detection is from the nearest other one of its class."""
    rows = np.flatnonzero(others.classes == found.classes[k])
    if not rows.size:
        return "the other finds none of that class"
    gaps = np.abs(others.boxes[rows] - found.boxes[k]).max(axis=1)
    score_gap = abs(others.scores[rows[gaps.argmin()]] - found.scores[k])
    return f"the other's nearest differs by {gaps.min():.2g} px and {score_gap:.2g} in score"
