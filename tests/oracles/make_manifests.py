"""Writes manifests/PEER.json: builds the peers' own models and lists their state. See manifests/README.md for how.

python make_manifests.py torchvision
python make_manifests.py mmdetection CONFIGS     # the folder configs/ of mmdetection 3.x
python make_manifests.py detectron2 CONFIGS      # the folder configs/ of detectron2
"""

import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.oracles import manifest

MMDETECTION = (
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco",
    "faster_rcnn/faster-rcnn_r50-caffe_fpn_1x_coco",
    "faster_rcnn/faster-rcnn_x101-64x4d_fpn_1x_coco",
    "faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco",
    "dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
    "dcn/faster-rcnn_r50_fpn_dpool_1x_coco",
    "dcn/faster-rcnn_x101-32x4d-dconv-c3-c5_fpn_1x_coco",
    "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
    "dcnv2/faster-rcnn_r50-mdconv-group4-c3-c5_fpn_1x_coco",
    "dcnv2/faster-rcnn_r50_fpn_mdpool_1x_coco",
    "gn/mask-rcnn_r50_fpn_gn-all_2x_coco",
    "gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco",
    "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco",
    "dcn/cascade-rcnn_r50-dconv-c3-c5_fpn_1x_coco",
)
DETECTRON2 = (
    "COCO-Detection/faster_rcnn_R_50_C4_1x",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/faster_rcnn_R_101_C4_3x",
    "COCO-Detection/faster_rcnn_R_101_DC5_3x",
    "COCO-Detection/faster_rcnn_R_101_FPN_3x",
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x",
    "PascalVOC-Detection/faster_rcnn_R_50_C4",
    "PascalVOC-Detection/faster_rcnn_R_50_FPN",
    "Misc/mask_rcnn_R_50_FPN_3x_gn",
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn",
    "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5",
)


CAFFE2 = {"COCO-Detection/faster_rcnn_R_50_FPN_1x": "ImageNetPretrained/MSRA/R-50.pkl"}


class NoOperators(types.ModuleType):
    """Stands for a compiled extension whose operators are never called: building a model needs their names alone."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **keywords: None


def torchvision_models() -> Iterator[tuple[str, manifest.Shapes]]:
    from torchvision import models
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    # the norms of the published weights are frozen; fasterrcnn_resnet50_fpn(weights=None) would have others
    frozen = detection.FasterRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), num_classes=91)
    yield "fasterrcnn_resnet50_fpn", state(frozen)
    yield "fasterrcnn_resnet50_fpn, names before 0.14", old_torchvision_names(frozen)
    v2 = detection.fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=91)
    yield "fasterrcnn_resnet50_fpn_v2", state(v2)
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2"):
        yield name, state(getattr(models, name)(weights=None))
    for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"):
        yield name, state(getattr(models, name)(weights=None))


def old_torchvision_names(model: torch.nn.Module) -> manifest.Shapes:
    """Names of the published file, which is older than the model's present ones; the model itself reads them."""
    model_state = model.state_dict()
    old = {re.sub(r"(_blocks\.\d|head\.conv\.0)\.0\.", r"\1.", name): name for name in model_state}
    old = {name.replace("head.conv.0.", "head.conv."): new for name, new in old.items()}
    tensors = {name: model_state[new] for name, new in old.items()}
    for module in model.modules():
        module._version = 1
    model.load_state_dict(tensors, strict=True)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def mmdetection_models(configs: Path) -> Iterator[tuple[str, manifest.Shapes]]:
    sys.modules["mmcv._ext"] = NoOperators("mmcv._ext")
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    for name in MMDETECTION:
        yield name, state(MODELS.build(Config.fromfile(configs / f"{name}.py").model))


def detectron2_models(configs: Path) -> Iterator[tuple[str, manifest.Shapes]]:
    sys.modules["detectron2._C"] = NoOperators("detectron2._C")
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    for name in DETECTRON2:
        config = get_cfg()
        config.merge_from_file(str(configs / f"{name}.yaml"))
        config.MODEL.DEVICE = "cpu"
        model = build_model(config)
        yield name, state(model)
        if name in CAFFE2:
            yield CAFFE2[name], caffe2_names(model)


def caffe2_names(model: torch.nn.Module) -> manifest.Shapes:
    """Names of the ImageNet weights that a detectron2 model starts from, as its reader understands them."""
    from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts

    prefix = "backbone.bottom_up."
    backbone = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith((f"{prefix}res", f"{prefix}stem"))
    }
    tensors = {_caffe2(name.removeprefix(prefix), tensor.ndim): tensor for name, tensor in backbone.items()}
    read = align_and_update_state_dicts(model.state_dict(), dict(tensors))
    assert set(read) == set(backbone)
    classifier = {"fc1000_w": (1000, 2048), "fc1000_b": (1000,)}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()} | classifier


def _caffe2(name: str, dimensions: int) -> str:
    frozen = {
        "weight": "bn_gamma",
        "bias": "bn_beta",
        "running_mean": "bn_running_mean",
        "running_var": "bn_running_var",
    }
    *layer, last = name.replace("stem.conv1", "conv1").split(".")
    branch = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "branch1"}
    words = [branch.get(word, word) if len(layer) > 2 else word for word in layer if word != "norm"]
    if dimensions == 4:
        return "_".join([*words, "w"])
    return "_".join([*(["res", *words] if words == ["conv1"] else words), frozen[last]])


def state(model: torch.nn.Module) -> manifest.Shapes:
    """The tensors of a detector's box branch; a mask branch, where a config has one, is left out."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if "mask_head" not in name}


def main(peer: str, *configs: str) -> None:
    build = globals()[f"{peer}_models"]
    models = {name: manifest.compress(shapes) for name, shapes in build(*map(Path, configs))}
    path = manifest.FOLDER / f"{peer}.json"
    path.write_text(f'{{"models": {{\n{",".join(_model(*item) for item in models.items())}\n}}}}\n')
    json.loads(path.read_text())
    print(f"{path}: {len(models)} models, {path.stat().st_size / 1024:.0f} KB")


def _model(name: str, lines: dict[str, list[int]]) -> str:
    entries = ",\n".join(f"  {json.dumps(pattern)}: {json.dumps(shape)}" for pattern, shape in lines.items())
    return f"\n{json.dumps(name)}: {{\n{entries}\n}}"


if __name__ == "__main__":
    main(*sys.argv[1:])
