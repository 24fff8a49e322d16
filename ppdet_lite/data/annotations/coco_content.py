"""The content of a COCO annotation file as packed arrays."""

from typing import Any, NamedTuple

import numpy as np

from ppdet_lite.data.annotations.problems import Problem


class Annotations(NamedTuple):
    """The A annotations of a file, in the order of the file."""

    ids: list[Any]  # as in the file
    image_ids: np.ndarray  # [A] int64
    category_ids: np.ndarray  # [A] int64
    xywh: np.ndarray  # [A, 4] float64; NaN where a value is null or the box is missing
    areas: np.ndarray  # [A] float64; NaN where it is missing
    is_crowd: np.ndarray  # [A] bool
    has_crowd_flag: np.ndarray  # [A] bool, whether the file gives iscrowd
    has_ignore_flag: np.ndarray  # [A] bool, whether `ignore` is set
    is_rotated: np.ndarray  # [A] bool, whether CVAT's `attributes.rotation` is not 0


class CocoFile(NamedTuple):
    """The content of an annotation file: images in the order of the file, categories in the order of their ids."""

    class_names: list[str]
    category_ids: list[int]
    image_ids: np.ndarray  # [images] int64, unique
    sizes: np.ndarray  # [images, 2] int32 (h, w); 0 where the file does not give it
    file_names: list[str]
    annotations: Annotations
    problems: list[Problem]  # what was repaired while reading
