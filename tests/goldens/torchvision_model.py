"""Golden values of a whole Faster R-CNN R18-FPN: features, proposals, detections, losses, gradients."""

from typing import NamedTuple
from unittest import mock

import inputs
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import permute_and_flatten
from torchvision.ops import FrozenBatchNorm2d, box_iou
from torchvision.ops.poolers import LevelMapper
from torchvision_ops import MARGIN, away, double, fill, pool_aligned, require, sampled

EVERYTHING = 10**6  # a sample size that no image reaches
GRADIENTS = (
    "backbone.body.conv1.weight",
    "backbone.body.layer1.0.conv1.weight",
    "backbone.body.layer2.0.downsample.0.weight",
    "backbone.body.layer3.1.conv2.weight",
    "backbone.body.layer4.1.conv1.weight",
    "backbone.fpn.inner_blocks.0.0.weight",
    "backbone.fpn.inner_blocks.3.0.bias",
    "backbone.fpn.layer_blocks.1.0.weight",
    "rpn.head.conv.0.0.weight",
    "rpn.head.cls_logits.weight",
    "rpn.head.bbox_pred.bias",
    "roi_heads.box_head.fc6.weight",
    "roi_heads.box_head.fc7.bias",
    "roi_heads.box_predictor.cls_score.weight",
    "roi_heads.box_predictor.bbox_pred.weight",
)


def detector(seed: int) -> FasterRCNN:
    """Faster R-CNN R18-FPN with anchors that are not rounded and samplers that take everything."""
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )
    model = FasterRCNN(
        backbone,
        box_head=TwoMLPHead(256 * 49, inputs.HIDDEN),
        box_predictor=FastRCNNPredictor(inputs.HIDDEN, inputs.NUM_CLASSES + 1),
        rpn_pre_nms_top_n_train=inputs.PRE_NMS,
        rpn_pre_nms_top_n_test=inputs.PRE_NMS,
        rpn_post_nms_top_n_train=inputs.POST_NMS,
        rpn_post_nms_top_n_test=inputs.POST_NMS,
        rpn_nms_thresh=inputs.RPN_NMS,
        rpn_batch_size_per_image=EVERYTHING,
        box_batch_size_per_image=EVERYTHING,
        box_score_thresh=inputs.SCORE_THRESHOLD,
        box_nms_thresh=inputs.BOX_NMS,
        box_detections_per_img=inputs.DETECTIONS,
    )
    model.rpn.anchor_generator.cell_anchors = list(double(inputs.base_anchors()))
    return fill(model, seed)


class Answer(NamedTuple):
    """What the detector says of the images: logits and deltas per level, the rest per image."""

    logits: list[Tensor]  # [N, M_l, 1]
    deltas: list[Tensor]  # [N, M_l, 4]
    proposals: list[Tensor]
    scores: list[Tensor]
    detections: list[dict[str, Tensor]]


@torch.no_grad()
def answer(model: FasterRCNN, features: dict[str, Tensor]) -> Answer:
    maps, sizes = list(features.values()), list(inputs.IMAGE_SIZES)
    logits, deltas = model.rpn.head(maps)
    logits = [permute_and_flatten(x, len(x), 3, 1, *x.shape[2:]) for x in logits]
    deltas = [permute_and_flatten(x, len(x), 3, 4, *x.shape[2:]) for x in deltas]
    anchors = model.rpn.anchor_generator(ImageList(torch.zeros(2, 3, *inputs.PADDED), sizes), maps)
    decoded = model.rpn.box_coder.decode(torch.cat(deltas, 1), anchors).reshape(2, -1, 4)
    proposals, scores = model.rpn.filter_proposals(decoded, torch.cat(logits, 1), sizes, [x.shape[1] for x in logits])
    detections, _ = model.roi_heads(features, proposals, sizes)
    return Answer(logits, deltas, proposals, scores, detections)


def unstable(model: FasterRCNN, features: dict[str, Tensor], said: Answer, trials: int = 12) -> str:
    """What changes, order included, when every feature moves by up to 1e-4 (float32 moves them by 3e-5 at most)."""
    torch.manual_seed(0)
    for _ in range(trials):
        moved = answer(model, {k: x + 1e-4 * (2 * torch.rand_like(x) - 1) for k, x in features.items()})
        for i in range(2):
            if not same(moved.proposals[i], said.proposals[i]):
                return "proposals"
            ours, theirs = moved.detections[i], said.detections[i]
            if not same(ours["boxes"], theirs["boxes"]) or not torch.equal(ours["labels"], theirs["labels"]):
                return "detections"
            for case in inputs.GROUND_TRUTH:
                truth = targets(case)[i]["boxes"]
                if not torch.equal(*(box_iou(truth, p) >= 0.5 for p in (moved.proposals[i], said.proposals[i]))):
                    return "matches"
    return ""


def same(boxes: Tensor, others: Tensor) -> bool:
    return boxes.shape == others.shape and torch.allclose(boxes, others, rtol=0, atol=0.1)


def targets(case: str) -> list[dict[str, Tensor]]:
    """torchvision's targets: classes start at 1, 0 is background."""
    return [
        {"boxes": torch.tensor(b, dtype=torch.float64).reshape(-1, 4), "labels": torch.tensor(c, dtype=torch.int64) + 1}
        for b, c in inputs.GROUND_TRUTH[case]
    ]


def training(model: FasterRCNN, images: Tensor, case: str) -> dict[str, Tensor]:
    """Losses (objectness, RPN box, class, box) and the gradient of each, with every anchor and RoI sampled."""
    truth, sizes = targets(case), list(inputs.IMAGE_SIZES)
    batch = ImageList(images, sizes)
    model.train()
    features = model.backbone(images)
    proposals, rpn_losses = model.rpn(batch, features, truth)
    _, box_losses = model.roi_heads(features, proposals, sizes, truth)
    losses = [
        rpn_losses["loss_objectness"],
        rpn_losses["loss_rpn_box_reg"],
        box_losses["loss_classifier"],
        box_losses["loss_box_reg"],
    ]
    named = dict(model.named_parameters())
    gradients = [
        torch.autograd.grad(x, [named[n] for n in GRADIENTS], retain_graph=True, allow_unused=True) for x in losses
    ]
    out = {f"train/{case}/losses": torch.stack(losses).detach()}
    for name, per_loss in zip(GRADIENTS, zip(*gradients, strict=True), strict=True):
        where = inputs.positions(f"gradient/{name}", named[name].numel(), 24)
        rows = [torch.zeros_like(named[name]) if g is None else g for g in per_loss]
        out[f"train/{case}/gradient/{name}"] = torch.stack(
            [torch.cat([g.norm()[None], g.flatten()[where]]) for g in rows]
        )

    with mock.patch.object(F, "smooth_l1_loss", lambda x, y, beta, reduction: F.l1_loss(x, y, reduction=reduction)):
        proposals, rpn_losses = model.rpn(batch, features, truth)
        _, box_losses = model.roi_heads(features, proposals, sizes, truth)
    out[f"train/{case}/l1"] = torch.stack([rpn_losses["loss_rpn_box_reg"], box_losses["loss_box_reg"]]).detach()

    anchors = model.rpn.anchor_generator(batch, list(features.values()))
    for target in truth:
        if len(target["boxes"]):
            quality = box_iou(target["boxes"], anchors[0])
            require(away(quality, 0.3, 0.7), f"anchors of {case}")
            below_best = quality - quality.max(dim=1, keepdim=True)[0]
            require(bool(((below_best < -MARGIN) | (below_best > -1e-9)).all()), f"best anchors of {case}")
    labels = torch.cat(model.rpn.assign_targets_to_anchors(anchors, truth)[0])
    rois, _, classes, _ = model.roi_heads.select_training_samples(proposals, truth)
    classes = torch.cat(classes)
    out[f"train/{case}/counts"] = torch.stack(
        [(labels > 0).sum(), (labels >= 0).sum(), (classes > 0).sum(), (classes >= 0).sum()]
    )
    out[f"train/{case}/rois"] = torch.tensor([len(r) for r in rois])
    model.eval()
    return out


def conditioning(model: FasterRCNN, images: Tensor, case: str, exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """How far float32-like rounding moves each gradient: [4 losses, 2] (its norm, an entry), relative to its norm.

    ReLUs and max-pools near a tie flip under it, which no implementation can avoid: a fair tolerance.
    """
    state = {k: v.clone() for k, v in model.state_dict().items()}
    names = [k for k in exact if "/gradient/" in k]
    worst = {k: torch.zeros(len(exact[k]), 2, dtype=torch.float64) for k in names}
    torch.manual_seed(0)
    for _ in range(8):
        model.load_state_dict({k: v * (1 + 3e-7 * (2 * torch.rand_like(v) - 1)) for k, v in state.items()})
        moved = training(model, images + 1e-6 * (2 * torch.rand_like(images) - 1), case)
        for k in names:
            error = (moved[k] - exact[k]).abs() / exact[k][:, :1].clamp(min=1e-30)
            worst[k] = worst[k].maximum(torch.stack([error[:, 0], error[:, 1:].max(dim=1)[0]], dim=1))
    model.load_state_dict(state)
    return {k.replace("/gradient/", "/conditioning/"): v for k, v in worst.items()}


def everything(seed: int) -> dict[str, Tensor]:
    model, images = detector(seed), double(inputs.model_images(seed))
    out: dict[str, Tensor] = {"model/seed": torch.tensor(seed)}
    with torch.no_grad():
        features = model.backbone(images)
    said = answer(model, features)
    trouble = unstable(model, features, said)
    require(not trouble, f"{trouble} of seed {seed}")
    for level, (feature, logits, deltas) in enumerate(zip(features.values(), said.logits, said.deltas, strict=True)):
        out |= sampled(f"model/P{level + 2}", feature, 512)
        out |= sampled(f"model/rpn_logits/{level}", logits, 128)
        out |= sampled(f"model/rpn_deltas/{level}", deltas, 128)
    for i in range(2):
        out |= {f"model/proposals/{i}": said.proposals[i], f"model/proposal_scores/{i}": said.scores[i]}
        out |= {f"model/detections/{i}/{k}": v for k, v in said.detections[i].items()}
    rois, counts = inputs.model_rois()
    per_image = list(double(rois).split(counts.tolist()))
    maps = list(features.values())[:4]
    pooled = {
        "legacy": model.roi_heads.box_roi_pool(features, per_image, list(inputs.IMAGE_SIZES)),
        "aligned": pool_aligned(maps, per_image, LevelMapper(2, 5)(per_image), 7, -1),
    }
    for kind, x in pooled.items():
        embedding = model.roi_heads.box_head(x)
        logits, deltas = model.roi_heads.box_predictor(embedding)
        out |= sampled(f"model/{kind}/pooled", x, 512) | sampled(f"model/{kind}/embedding", embedding, 512)
        out |= {f"model/{kind}/logits": logits.detach(), f"model/{kind}/deltas": deltas.detach()}
    for case in inputs.GROUND_TRUTH:
        exact = training(model, images, case)
        out |= exact | conditioning(model, images, case, exact)
    return out
