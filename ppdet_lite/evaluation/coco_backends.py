"""The packages that compute the COCO metric: pycocotools, the original, and faster-coco-eval, in C++.

They are imported on first use. Their results are equal to the last bit: pycocotools divides by the number of detections
plus 2.2e-16, which matters only for the precision of a first detection that is correct: 1 - 2.2e-16 instead of 1.
`_with_pycocotools_rounding` gives faster-coco-eval's arrays the same value there.
"""

import contextlib
import importlib.metadata
import importlib.util
import io
from typing import Any, Literal, NamedTuple

import numpy as np

from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger

BackendName = Literal["auto", "faster", "pycocotools"]
DYADIC = 2.0 ** -np.arange(31)  # recalls 1, 1/2, 1/4, ...: for up to 2**30 objects of a class, one is in (1/n, 2/n]
FIRST_PRECISION = 1 / (1 + np.spacing(1))  # pycocotools' precision of a first detection that is correct


class CocoEvaluation(NamedTuple):
    """The results of an evaluation of boxes, of K categories, 4 ranges of areas and 3 limits of detections."""

    precision: np.ndarray  # [10 IoU thresholds, 101 recalls, K, 4, 3]; -1 without objects
    summary: np.ndarray  # [12], COCO's metrics in their usual order
    category_ids: list[int]  # [K], ascending


class Backend(NamedTuple):
    """A package that computes the COCO metric."""

    package: Literal["faster-coco-eval", "pycocotools"]
    version: str
    coco: type
    coco_eval: type

    def __str__(self) -> str:
        return f"{self.package} {self.version}"

    def evaluate(self, truth: dict[str, Any], detections: dict[str, Any]) -> CocoEvaluation:
        """Evaluate detections; both arguments have the form of `COCO().dataset`."""
        truth_index, detection_index = self.coco(), self.coco()
        truth_index.dataset, detection_index.dataset = truth, detections
        with contextlib.redirect_stdout(io.StringIO()):
            truth_index.createIndex()
            detection_index.createIndex()
            scorer = self.coco_eval(truth_index, detection_index, "bbox")
            if self.package == "faster-coco-eval":
                _evaluate_faster(scorer, truth["annotations"])
            else:
                scorer.evaluate()
                scorer.accumulate()
            scorer.summarize()
        return CocoEvaluation(scorer.eval["precision"], np.asarray(scorer.stats), list(scorer.params.catIds))


def require_backend(name: BackendName, place: str = "eval.backend") -> Backend:
    """Return a backend; `auto` is faster-coco-eval if it is installed, else pycocotools.

    Raises UserError if the backend is not installed. place: the key to change, for the message.
    """
    if name != "pycocotools":
        try:
            return _import_faster()
        except ImportError as error:
            if name == "faster":
                message = f"{place}: faster requires a missing package: pip install faster-coco-eval, or set auto"
                raise UserError(f"{message} ({error})") from None
            if importlib.util.find_spec("faster_coco_eval") is not None:
                get_logger().warning("faster-coco-eval cannot be imported (%s); pycocotools is used instead", error)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return Backend("pycocotools", importlib.metadata.version("pycocotools"), COCO, COCOeval)


def _import_faster() -> Backend:
    from faster_coco_eval import COCO, COCOeval_faster

    return Backend("faster-coco-eval", importlib.metadata.version("faster-coco-eval"), COCO, COCOeval_faster)


def _evaluate_faster(scorer: Any, annotations: list[dict[str, Any]]) -> None:
    """Evaluate and accumulate with faster-coco-eval, and round its precisions as pycocotools does."""
    recalls = scorer.params.recThrs
    scorer.params.recThrs = np.union1d(recalls, DYADIC)
    scorer.evaluate()
    scorer.accumulate()
    counts = _object_counts(annotations, scorer.params.catIds, scorer.params.areaRng)
    precision = _with_pycocotools_rounding(np.asarray(scorer.eval["precision"]), counts, scorer.params.recThrs)
    scorer.eval["precision"] = precision[:, np.searchsorted(scorer.params.recThrs, recalls)]
    scorer.params.recThrs = recalls


def _with_pycocotools_rounding(precision: np.ndarray, counts: np.ndarray, recalls: np.ndarray) -> np.ndarray:
    """Replace precisions of 1 where only the first detection reaches it: the second is wrong or missing.

    precision: [T, recalls, K, A, M], the highest precision at each recall or above. counts: [K, A], the number of
    objects n. With n objects, the first correct detection has recall 1/n and the second 2/n. So at a recall in
    (1/n, 2/n], which DYADIC has for each n above 1, the precision is 1 exactly if the first two detections are correct.
    """
    second = np.searchsorted(recalls, _power_of_two_above(counts))  # [K, A]
    k, a = np.indices(second.shape)
    only_first = (precision[:, second, k, a] != 1) | (counts == 1)[..., None]  # [T, K, A, M]
    return np.where((precision == 1) & only_first[:, None], FIRST_PRECISION, precision)


def _power_of_two_above(counts: np.ndarray) -> np.ndarray:
    """Return the power of two in (1/n, 2/n] for each n; 1 for n below 2."""
    return 2.0 ** -np.floor(np.log2(np.maximum(counts, 2) - 0.5))


def _object_counts(annotations: list[dict[str, Any]], category_ids: list[int], ranges: list[list[float]]) -> np.ndarray:
    """Return the number of objects of each category and range of areas, [K, A], without crowd regions."""
    objects = [record for record in annotations if not record["iscrowd"]]
    areas = np.array([record["area"] for record in objects], np.float64)
    category = np.searchsorted(category_ids, np.array([record["category_id"] for record in objects], np.int64))
    counts = [
        np.bincount(category[(areas >= low) & (areas <= high)], minlength=len(category_ids)) for low, high in ranges
    ]
    return np.stack(counts, axis=1)
