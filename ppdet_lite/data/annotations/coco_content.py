"""The content of a COCO annotation file as packed arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.data.annotations.problems import Problem


class Annotations(NamedTuple):
    """The objects of a file, A of them, in its order."""

    ids: Sequence[Any]  # as the file has them
    image_ids: np.ndarray  # [A] int64
    category_ids: np.ndarray  # [A] int64
    xywh: np.ndarray  # [A, 4] float64; NaN where it is not a number
    areas: np.ndarray  # [A] float64; NaN where there is none
    is_crowd: np.ndarray  # [A] bool
    says_crowd: np.ndarray  # [A] bool, whether the file says it


class CocoFile(NamedTuple):
    """The content of an annotation file; images are in its order, categories in the order of their ids."""

    class_names: list[str]
    category_ids: list[int]
    image_ids: np.ndarray  # [images] int64, unique
    sizes: np.ndarray  # [images, 2] int32 (h, w); 0 where the file does not say
    file_names: list[str]
    annotations: Annotations
    problems: list[Problem]  # what was mended in reading
