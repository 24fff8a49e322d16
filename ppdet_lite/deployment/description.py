"""What an exported model says of itself: its classes, how images are made its input, and what it keeps.

In a folder this stands in infer_cfg.yml, among PaddleDetection's own keys; elsewhere it is one JSON text.
"""

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
SECTION = "ppdet_lite"  # of infer_cfg.yml, and the key under which other formats keep the JSON
TOLD_EXACTLY = {("exact", "linear", "uint8"), ("exact", "cubic", "uint8")}  # ways to resize that infer_cfg.yml can say

log = get_logger()


@dataclass(frozen=True)
class Description:
    """An exported model, as it is to be used.

    category_ids: class -> id in the data it was trained on.
    preprocess: how images are made the graph's input; a graph takes RGB, whatever the trained model takes.
    postprocess: what the graph does last.
    versions: package -> what wrote it.
    """

    class_names: list[str]
    category_ids: list[int]
    preprocess: Preprocess
    postprocess: Postprocess
    versions: Mapping[str, str]

    @classmethod
    def of(cls, trained: TrainedModel) -> "Description":
        """What the export of a trained model is to say."""
        return cls(
            list(trained.class_names),
            list(trained.category_ids),
            trained.preprocess.for_rgb(),
            trained.model.postprocess,
            {"ppdet_lite": __version__, "paddle": paddle.__version__},
        )

    def to_json(self) -> str:
        """All of it as one line, for formats that keep a text."""
        return json.dumps(_content(self))

    def to_yaml(self) -> str:
        """All of it as infer_cfg.yml, which PaddleDetection's deploy/python/infer.py reads too.

        Logs a warning if that cannot resize images just so.
        """
        ours = _content(self)
        return yaml.safe_dump(
            {**_paddle_detections(self.preprocess), "label_list": ours.pop("class_names"), SECTION: ours},
            sort_keys=False,
        )


def from_json(text: str, source: str) -> Description:
    """Read what `Description.to_json` wrote. Raises UserError, naming the source, for anything else."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source}: what it says of itself is damaged ({error}); export it again") from error
    return _parse(content, source)


def from_folder(folder: Path) -> Description:
    """Read infer_cfg.yml of an exported model. Raises UserError if it is not there, or not one of ours."""
    path = Path(folder) / DESCRIPTION
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; write it with tools/export_model.py") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no YAML, {' '.join(str(error).split())}; export the model again") from error
    ours = content.get(SECTION) if isinstance(content, dict) else None
    if not isinstance(ours, dict):
        raise UserError(f"{path}: has no section {SECTION}: another program's export; export it with this one")
    return _parse({**ours, "class_names": content.get("label_list")}, str(path))


def _content(description: Description) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(description)))  # tuples as lists


def _parse(content: Any, source: str) -> Description:
    try:
        description = TypeAdapter(Description).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{source}: {place}: {first['msg']}; export the model again with this version") from error
    if _content(description) != content:
        raise UserError(f"{source}: says more than version {__version__} knows, or says it twice; export it again")
    if len(description.class_names) != len(description.category_ids):
        raise UserError(f"{source}: names {len(description.class_names)} classes, but not as many category ids")
    return description


def _paddle_detections(preprocess: Preprocess) -> dict[str, Any]:
    """The keys of infer_cfg.yml that are PaddleDetection's."""
    if (preprocess.sizing, preprocess.interpolation, preprocess.resize_in) not in TOLD_EXACTLY:
        log.warning(
            "PaddleDetection's deployment cannot resize as data.preprocess says (sizing %s, interpolation %s, in %s): "
            "detections there will differ a little",
            *(preprocess.sizing, preprocess.interpolation, preprocess.resize_in),
        )
    return {
        "mode": "paddle",
        "draw_threshold": 0.5,
        "metric": "COCO",
        "use_dynamic_shape": True,
        "arch": "RCNN",
        "min_subgraph_size": 40,  # of TensorRT's, as PaddleDetection sets it for this architecture
        "Preprocess": [
            {
                "type": "Resize",
                # their (short side, long side), of which they take the smaller number for the short one
                "target_size": [min(preprocess.short_side, preprocess.long_side), preprocess.long_side],
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
