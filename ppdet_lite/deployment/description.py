"""The description in an exported model: its classes, preprocessing and postprocessing.

A Paddle export stores it in infer_cfg.yml, next to PaddleDetection's own keys; an ONNX file stores it as JSON metadata.
"""

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import paddle
import yaml
from pydantic import TypeAdapter, ValidationError

from ppdet_lite import __version__
from ppdet_lite.assembly.setup import TrainedModel
from ppdet_lite.core.errors import UserError
from ppdet_lite.core.log import get_logger
from ppdet_lite.data.loading.transforms import Preprocess
from ppdet_lite.modeling.postprocess import Postprocess

DESCRIPTION = "infer_cfg.yml"
SECTION = "ppdet_lite"  # section of infer_cfg.yml, and metadata key of the JSON in an ONNX file
EXACT_RESIZES = set(itertools.product(("exact", "unrounded"), ("linear", "cubic"), ("uint8",)))
"""(sizing, interpolation, resize_in) that PaddleDetection's keys can express."""

log = get_logger()


@dataclass(frozen=True)
class Description:
    """What is needed to use an exported model.

    category_ids: category id in the training data by class index.
    preprocess: conversion of images to the graph's input. A graph takes RGB, even if the trained model takes BGR.
    postprocess: thresholds and limits of the graph's NMS.
    versions: name -> version of the packages that wrote the export.
    """

    class_names: list[str]
    category_ids: list[int]
    preprocess: Preprocess
    postprocess: Postprocess
    versions: Mapping[str, str]

    @classmethod
    def from_trained(cls, trained: TrainedModel) -> "Description":
        """Return the description of a trained model's export."""
        return cls(
            list(trained.class_names),
            list(trained.category_ids),
            trained.preprocess.with_rgb_input(),
            trained.model.postprocess,
            {"ppdet_lite": __version__, "paddle": paddle.__version__},
        )

    def to_json(self) -> str:
        """Return the description as one line of JSON."""
        return json.dumps(_content(self))

    def to_yaml(self) -> str:
        """Return the content of infer_cfg.yml, which PaddleDetection's deploy/python/infer.py can also read.

        Logs a warning if that script cannot resize images in the same way.
        """
        section = _content(self)
        return yaml.safe_dump(
            {**_paddledetection_keys(self.preprocess), "label_list": section.pop("class_names"), SECTION: section},
            sort_keys=False,
        )


def from_json(text: str, source: str) -> Description:
    """Parse the output of `Description.to_json`. Raises UserError, with `source` in its message, for other text."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source}: its description is damaged ({error}); export the model again") from error
    return _parse(content, source)


def from_folder(folder: Path) -> Description:
    """Read infer_cfg.yml of an exported model. Raises UserError if it is missing or written by another program."""
    path = Path(folder) / DESCRIPTION
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; use ppdet-lite export-model") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: invalid YAML: {' '.join(str(error).split())}; export the model again") from error
    section = content.get(SECTION) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise UserError(f"{path}: has no section {SECTION}, another program wrote it; use ppdet-lite export-model")
    return _parse({**section, "class_names": content.get("label_list")}, str(path))


def _content(description: Description) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(description)))  # tuples as lists


def _parse(content: Any, source: str) -> Description:
    try:
        description = TypeAdapter(Description).validate_python(content)
    except ValidationError as error:
        detail = error.errors()[0]
        key = ".".join(map(str, detail["loc"]))
        raise UserError(f"{source}: {key}: {detail['msg']}; export the model again with this version") from error
    if _content(description) != content:
        raise UserError(f"{source}: has keys that version {__version__} does not support; export the model again")
    names, ids = len(description.class_names), len(description.category_ids)
    if names != ids:
        raise UserError(f"{source}: {names} class names but {ids} category ids; export the model again")
    return description


def _paddledetection_keys(preprocess: Preprocess) -> dict[str, Any]:
    """Return PaddleDetection's keys of infer_cfg.yml."""
    resize = (preprocess.sizing, preprocess.interpolation, preprocess.resize_in)
    if resize not in EXACT_RESIZES:
        log.warning(
            "PaddleDetection's deployment cannot resize as data.preprocess does (sizing %s, interpolation %s, "
            "resize_in %s): its detections will differ slightly",
            *resize,
        )
    return {
        "mode": "paddle",
        "draw_threshold": 0.5,
        "metric": "COCO",
        "use_dynamic_shape": True,
        "arch": "RCNN",
        "min_subgraph_size": 40,  # for TensorRT: PaddleDetection's value for this architecture
        "Preprocess": [
            {
                "type": "Resize",
                # (short side, long side); PaddleDetection takes the smaller number as the short side
                "target_size": [preprocess.short_side, preprocess.long_side],
                "keep_ratio": True,
                "interp": cv2.INTER_CUBIC if preprocess.interpolation == "cubic" else cv2.INTER_LINEAR,
            },
            {
                "type": "NormalizeImage",
                "mean": list(preprocess.mean),
                "std": list(preprocess.std),
                "is_scale": preprocess.pixel_range == 1,
                "norm_type": "mean_std",
            },
            {"type": "Permute"},
            {"type": "PadStride", "stride": preprocess.stride},
        ],
    }
