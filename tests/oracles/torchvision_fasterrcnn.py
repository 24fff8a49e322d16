"""Writes torchvision_fasterrcnn.npz: torchvision's two Faster R-CNNs, as constructed, on three pictures.

In an environment of its own, from the repository's root:
    pip install torch torchvision && python -m tests.oracles.torchvision_fasterrcnn [--search N]
Everything is torchvision's own: its preprocessing of pictures in [0, 1], rounded anchors, RoIAlign with ratio 2, not
aligned, and in the first model frozen norms with epsilon 0, as its published weights have. Only sizes, the number of
classes and the number of proposals (PRE_NMS, POST_NMS) are smaller, so that no decision lies near its boundary; and in
training the sample sizes are larger than any number of candidates, so that both samplers take everything.
Computed in float64, stored in float32. `--search N` tries N seeds for each model.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.models import resnet50
from torchvision.models._api import WeightsEnum
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import permute_and_flatten
from torchvision.ops import box_iou

from tests.goldens import inputs
from tests.oracles import cases

SEEDS = {"v1": 1, "v2": 0}  # they are stable at twice the rounding, too
EVERYTHING = 10**6  # a sample size that no picture reaches
SETTINGS = {
    "num_classes": cases.NUM_CLASSES,
    "min_size": cases.MIN_SIZE,
    "max_size": cases.MAX_SIZE,
    "rpn_pre_nms_top_n_train": cases.PRE_NMS,
    "rpn_pre_nms_top_n_test": cases.PRE_NMS,
    "rpn_post_nms_top_n_train": cases.POST_NMS,
    "rpn_post_nms_top_n_test": cases.POST_NMS,
    "rpn_batch_size_per_image": EVERYTHING,
    "box_batch_size_per_image": EVERYTHING,
}


def v1() -> FasterRCNN:
    """As from weights="COCO_V1", but for what is loaded: norms are frozen, with epsilon 0, and three stages trainable.

    The constructor freezes the norms only if it is given weights, which are made here in place of a download.
    """
    with mock.patch.object(WeightsEnum, "get_state_dict", lambda *_, **__: resnet50(weights=None).state_dict()):
        model = fasterrcnn_resnet50_fpn(weights_backbone="IMAGENET1K_V1", **SETTINGS)
    overwrite_eps(model, 0.0)
    return model


def v2() -> FasterRCNN:
    return fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, **SETTINGS)


MODELS: dict[str, Callable[[], FasterRCNN]] = {"v1": v1, "v2": v2}


def filled(version: str, seed: int) -> FasterRCNN:
    model = MODELS[version]()
    state = {
        name: torch.from_numpy(cases.detector_weight(name, tuple(tensor.shape), seed)).double()
        for name, tensor in model.state_dict().items()
        if tensor.ndim
    }
    model.double().load_state_dict(state, strict=False)
    return model.eval()


def pictures(seed: int) -> list[Tensor]:
    """As torchvision wants them: float [3, h, w] in [0, 1]."""
    return [torch.from_numpy(p).permute(2, 0, 1).double() / 255 for p in cases.pictures(seed)]


def targets() -> list[dict[str, Tensor]]:
    return [{"boxes": torch.tensor(b, dtype=torch.float64), "labels": torch.tensor(c)} for b, c in cases.GROUND_TRUTH]


class Answer(NamedTuple):
    """What a detector says of a batch: logits and deltas per level, the rest per picture; boxes in network pixels."""

    logits: list[Tensor]
    deltas: list[Tensor]
    proposals: list[Tensor]
    scores: list[Tensor]
    class_logits: Tensor
    box_deltas: Tensor
    detections: list[dict[str, Tensor]]


@torch.no_grad()
def answer(model: FasterRCNN, batch: ImageList, features: dict[str, Tensor]) -> Answer:
    maps, count = list(features.values()), len(batch.image_sizes)
    logits, deltas = model.rpn.head(maps)
    logits = [permute_and_flatten(x, count, 3, 1, *x.shape[2:]) for x in logits]
    deltas = [permute_and_flatten(x, count, 3, 4, *x.shape[2:]) for x in deltas]
    anchors = model.rpn.anchor_generator(batch, maps)
    decoded = model.rpn.box_coder.decode(torch.cat(deltas, 1), anchors).reshape(count, -1, 4)
    sizes = batch.image_sizes
    proposals, scores = model.rpn.filter_proposals(decoded, torch.cat(logits, 1), sizes, [x.shape[1] for x in logits])
    heads = model.roi_heads
    said = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, sizes)))
    boxes, probabilities, labels = heads.postprocess_detections(*said, proposals, sizes)
    detections = [dict(zip(("boxes", "scores", "labels"), x)) for x in zip(boxes, probabilities, labels)]
    return Answer(logits, deltas, proposals, scores, *said, detections)


def unstable(
    model: FasterRCNN, batch: ImageList, features: dict[str, Tensor], said: Answer, by: dict[str, float]
) -> str:
    """What changes, order included, when every feature moves by up to what float32 moves any of its level."""
    torch.manual_seed(0)
    truth = [t["boxes"] for t in model.transform(pictures(0), targets())[1]]
    for _ in range(10):
        moved = answer(model, batch, {k: x + by[k] * (2 * torch.rand_like(x) - 1) for k, x in features.items()})
        for i in range(len(said.proposals)):
            if not same(moved.proposals[i], said.proposals[i]):
                return "proposals"
            ours, theirs = moved.detections[i], said.detections[i]
            if not same(ours["boxes"], theirs["boxes"]) or not torch.equal(ours["labels"], theirs["labels"]):
                return "detections"
            if not torch.equal(*(box_iou(truth[i], p[i]) >= 0.5 for p in (moved.proposals, said.proposals))):
                return "matches"
    return ""


def same(boxes: Tensor, others: Tensor) -> bool:
    return boxes.shape == others.shape and torch.allclose(boxes, others, rtol=0, atol=0.1)


def rounding(version: str, seed: int, features: dict[str, Tensor]) -> dict[str, float]:
    """How far torchvision's own features in float32 are from the exact ones."""
    model = filled(version, seed).float()
    with torch.no_grad():
        batch, _ = model.transform([p.float() for p in pictures(seed)])
        rough = model.backbone(batch.tensors)
    return {name: float((rough[name].double() - x).abs().max()) for name, x in features.items()}


def sampled(name: str, tensor: Tensor, count: int) -> dict[str, Tensor]:
    flat = tensor.detach().flatten()
    where = torch.from_numpy(inputs.positions(name, flat.numel(), count))
    return {name: flat[where], f"{name}/moments": torch.stack([flat.mean(), flat.std(correction=0)])}


def training(model: FasterRCNN, seed: int) -> dict[str, Tensor]:
    """The four losses, and what their sum's gradient is for a few parameters: its norm, then samples."""
    model.train()
    losses = model(pictures(seed), targets())
    sum(losses.values()).backward()
    model.eval()
    out = {f"train/{name}": loss.detach() for name, loss in losses.items()}
    named = dict(model.named_parameters())
    for name in cases.GRADIENTS:
        gradient = named[name].grad.flatten()
        where = inputs.positions(f"gradient/{name}", gradient.numel(), 64)
        out[f"train/gradient/{name}"] = torch.cat([gradient.norm()[None], gradient[where]])
    model.zero_grad(set_to_none=True)
    return out


def conditioning(model: FasterRCNN, seed: int, exact: dict[str, Tensor]) -> dict[str, Tensor]:
    """How far float32-like rounding of the weights moves losses (relative) and gradients (relative to their norm)."""
    state = {k: v.clone() for k, v in model.state_dict().items()}
    worst = dict.fromkeys(exact, torch.zeros((), dtype=torch.float64))
    torch.manual_seed(0)
    for _ in range(5):
        moved = {
            k: v * (1 + 3e-7 * (2 * torch.rand_like(v) - 1)) if v.is_floating_point() else v for k, v in state.items()
        }
        model.load_state_dict(moved)
        for name, value in training(model, seed).items():
            scale = exact[name].flatten()[0].abs()
            worst[name] = worst[name].maximum((value - exact[name]).abs().max() / scale)
    model.load_state_dict(state)
    return {name.replace("train/", "conditioning/"): error for name, error in worst.items()}


def close_matches(
    model: FasterRCNN, batch: ImageList, features: dict[str, Tensor], truth: list[dict[str, Tensor]]
) -> bool:
    """Whether an anchor's overlap with an object lies near a threshold, or near the object's best without being it."""
    for anchors, target in zip(model.rpn.anchor_generator(batch, list(features.values())), truth):
        overlap = box_iou(target["boxes"], anchors)
        if any(bool(((overlap - t).abs() < 1e-4).any()) for t in (0.3, 0.7)):
            return True
        below = overlap.max(dim=1, keepdim=True)[0] - overlap
        if bool(((below > 1e-9) & (below < 1e-4)).any()):
            return True
    return False


@torch.no_grad()
def prepared(model: FasterRCNN, seed: int) -> tuple[ImageList, dict[str, Tensor]]:
    batch, _ = model.transform(pictures(seed))
    assert batch.tensors.shape[2:] == cases.PADDED
    return batch, model.backbone(batch.tensors)


def everything(version: str, seed: int) -> dict[str, Tensor]:
    model = filled(version, seed)
    batch, features = prepared(model, seed)
    said = answer(model, batch, features)
    trouble = unstable(model, batch, features, said, rounding(version, seed, features))
    if trouble:
        raise SystemExit(f"{version}: {trouble} of seed {seed} lie too near a boundary: search another")
    out: dict[str, Tensor] = {"seed": torch.tensor(seed), "image_sizes": torch.tensor(batch.image_sizes)}
    out |= sampled("batch", batch.tensors, 256)
    for level, (x, logits, deltas) in enumerate(zip(features.values(), said.logits, said.deltas)):
        out |= sampled(f"P{level + 2}", x, 128)
        out |= sampled(f"rpn_logits/{level}", logits, 64) | sampled(f"rpn_deltas/{level}", deltas, 64)
    out["float32"] = torch.tensor(list(rounding(version, seed, features).values()))
    out |= sampled("class_logits", said.class_logits, 256) | sampled("box_deltas", said.box_deltas, 256)
    with torch.no_grad():
        final = model(pictures(seed))
    for i, found in enumerate(final):
        out |= {f"{i}/proposals": said.proposals[i], f"{i}/proposal_scores": said.scores[i]}
        out |= {f"{i}/{name}": value for name, value in found.items()}
    if version == "v1":
        _, truth = model.transform(pictures(seed), targets())
        assert not close_matches(model, batch, features, truth), "anchors lie near a threshold: move GROUND_TRUTH"
        out |= {f"{i}/gt_boxes": t["boxes"] for i, t in enumerate(truth)}
        exact = training(model, seed)
        out |= exact | conditioning(model, seed, exact)
    return {f"{version}/{name}": value for name, value in out.items()}


def strides() -> dict[str, Tensor]:
    """Where torchvision's anchors of an input that is no multiple of 64 lie: the second of a level's first two rows."""
    generator = AnchorGenerator(tuple((s,) for s in inputs.SIZES), (inputs.RATIOS,) * 5)
    grids = [(-(-800 // s), -(-1088 // s)) for s in inputs.STRIDES]
    boxes = generator(ImageList(torch.zeros(1, 3, 800, 1088), [(800, 1088)]), [torch.zeros(1, 1, *g) for g in grids])[0]
    per_level = boxes.split([h * w * 3 for h, w in grids])
    return {"strides/800x1088": torch.stack([x[3 * w] - x[0] for x, (_, w) in zip(per_level, grids)])[:, 1]}


def search(count: int) -> None:
    for version in MODELS:
        for seed in range(count):
            model = filled(version, seed)
            batch, features = prepared(model, seed)
            said = answer(model, batch, features)
            trouble = unstable(model, batch, features, said, rounding(version, seed, features))
            print(version, seed, trouble or "stable", [len(d["boxes"]) for d in said.detections], flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--search"]:
        return search(int(sys.argv[2]))
    out = strides()
    for version, seed in SEEDS.items():
        out |= everything(version, seed)
    arrays = {k: v.numpy().astype(np.float32 if v.is_floating_point() else np.int32) for k, v in out.items()}
    arrays["fingerprint"] = np.array(inputs.fingerprint())
    arrays["versions"] = np.array([torch.__version__, torchvision.__version__, np.__version__])
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
