"""torchvision's side of `speed.py`: its own Faster R-CNN, of our recipes' sizes."""

import functools
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import ResNet
from torchvision.ops import DeformConv2d, FrozenBatchNorm2d

from tests.oracles.speed_cases import CASES, CLASSES, DEFORMABLE, SLIM, Case, pictures, serve

NORMS = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d, "gn": functools.partial(nn.GroupNorm, 32)}


class Modulated(nn.Module):
    """A modulated deformable 3x3 convolution in place of a plain one (Zhu et al. 2018)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.offset = nn.Conv2d(conv.in_channels, 27, 3, conv.stride, 1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        self.conv = DeformConv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        predicted = self.offset(x)
        return self.conv(x, predicted[:, :18], predicted[:, 18:].sigmoid())


def deform(backbone: ResNet) -> None:
    """Every 3x3 convolution of stages 3 to 5 becomes deformable."""
    for stage in (backbone.layer2, backbone.layer3, backbone.layer4):
        for block in stage:
            block.conv2 = Modulated(block.conv2)


def build(case: Case) -> FasterRCNN:
    """The detector of a case."""
    slim, norm = case.config == SLIM, NORMS[case.norm]
    backbone = (resnet18 if slim else resnet50)(weights=None, norm_layer=norm)
    if case.config == DEFORMABLE:
        deform(backbone)
    if not slim:  # as torchvision has it by default, and as our recipe
        for frozen in (backbone.conv1, backbone.layer1):
            frozen.requires_grad_(False)
    pyramid = BackboneWithFPN(
        backbone,
        {f"layer{i + 1}": str(i) for i in range(4)},
        [64, 128, 256, 512] if slim else [256, 512, 1024, 2048],
        64 if slim else 256,
        norm_layer=norm if case.norm == "gn" else None,
    )
    sizes = {"min_size": case.size[0], "max_size": 10**6}
    if not slim:
        return FasterRCNN(pyramid, CLASSES + 1, rpn_post_nms_top_n_train=1000, **sizes)
    return FasterRCNN(
        pyramid,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=200,
        box_batch_size_per_image=64,
        box_head=TwoMLPHead(64 * 7 * 7, 256),
        box_predictor=FastRCNNPredictor(256, CLASSES + 1),
        **sizes,
    )


def step_of(case: Case, bfloat16: bool) -> Callable[[], object]:
    """A training step or a detection, from uint8 pixels on; the learning rate is 0. bfloat16: under autocast."""
    torch.manual_seed(0)
    model, made = build(case), pictures(case)
    targets = [
        {"boxes": torch.from_numpy(picture.boxes), "labels": torch.from_numpy(picture.classes + 1)} for picture in made
    ]
    model.train(case.training)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    slim = case.config == SLIM
    optimizer = torch.optim.AdamW(trained, 0.0) if slim else torch.optim.SGD(trained, 0.0, 0.9, weight_decay=1e-4)

    def images() -> list[Tensor]:
        return [torch.from_numpy(picture.image).permute(2, 0, 1).float() / 255 for picture in made]

    def run(*arguments: object) -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            return model(images(), *arguments)

    def train() -> float:
        loss = sum(run(targets).values())
        optimizer.zero_grad()
        loss.backward()
        if slim:
            nn.utils.clip_grad_norm_(trained, 10.0)
        optimizer.step()
        return loss.item()

    return train if case.training else torch.no_grad()(run)


if __name__ == "__main__":
    serve(step_of(CASES[sys.argv[1]], bfloat16="bfloat16" in sys.argv[2:]))
