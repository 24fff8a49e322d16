"""torchvision's Faster R-CNN on blood cells, with batch or group norm, at the settings of
configs/bccd/faster_rcnn_r18_fpn_bccd.yml.

In an environment of its own, from the repository's root, once dataset/bccd is there (docs/bccd.md):
    pip install torch torchvision pycocotools
    python -m tests.oracles.bccd_torchvision --seeds 0 1 2 --norm bn --output FILE.json [--our-start] [--device cuda]
Model, sampling, losses, resizing and inference are torchvision's own; sizes, optimizer and schedule are the recipe's.
"""

import argparse
import functools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead

DATA = Path("dataset/bccd")
SHORT_SIDES, LONG_SIDE, TEST_SIDE = (288, 320, 352), 533, 320
BATCH, WARMUP, RATE, DECAY, CLIP = 4, 50, 1e-3, 0.05, 10.0
NORMS = {"bn": nn.BatchNorm2d, "gn": functools.partial(nn.GroupNorm, 32)}
Sample = tuple[Tensor, dict[str, Tensor]]


def build(norm: str, classes: int) -> FasterRCNN:
    """The recipe's detector, from random initialization."""
    backbone = resnet18(weights=None, norm_layer=NORMS[norm])
    stages = {f"layer{i + 1}": str(i) for i in range(4)}
    fpn_norm = None if norm == "bn" else NORMS[norm]
    pyramid = BackboneWithFPN(backbone, stages, [64, 128, 256, 512], 64, norm_layer=fpn_norm)
    return FasterRCNN(
        pyramid,
        min_size=SHORT_SIDES,
        max_size=LONG_SIDE,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=500,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=200,
        box_batch_size_per_image=64,
        box_head=TwoMLPHead(64 * 7 * 7, 256)
        if norm == "bn"
        else FastRCNNConvFCHead((64, 7, 7), [64, 64], [256], norm_layer=NORMS[norm]),
        box_predictor=FastRCNNPredictor(256, classes + 1),
    )


def initialize_as_we_do(model: FasterRCNN) -> None:
    """The box head's linear layers and the predictor, in torchvision uniform up to 1/sqrt(inputs), as ours begin."""
    predictor = model.roi_heads.box_predictor
    for layer, spread in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        nn.init.normal_(layer.weight, 0.0, spread)
        nn.init.zeros_(layer.bias)
    for layer in model.roi_heads.box_head.modules():
        if isinstance(layer, nn.Linear):
            bound = math.sqrt(3 / layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound)
            nn.init.zeros_(layer.bias)


def read(split: str, coco: COCO) -> list[Sample]:
    """All images [3, H, W] in 0..1 of a split with boxes and labels 1..K; boxes without area are left out."""
    labels = {category: i + 1 for i, category in enumerate(sorted(coco.getCatIds()))}
    samples = []
    for image_id in sorted(coco.getImgIds()):
        pixels = np.asarray(Image.open(DATA / split / coco.imgs[image_id]["file_name"]).convert("RGB"))
        found = [a for a in coco.imgToAnns[image_id] if min(a["bbox"][2:]) > 0]
        boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        target = {"boxes": boxes, "labels": torch.tensor([labels[a["category_id"]] for a in found], dtype=torch.int64)}
        samples.append((torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, target))
    return samples


def shuffled(samples: list[Sample], rng: random.Random) -> Iterator[Sample]:
    """Epoch after epoch, each in an order of its own, every other image mirrored."""
    while True:
        for image, target in rng.sample(samples, len(samples) // BATCH * BATCH):
            if rng.random() < 0.5:
                boxes = target["boxes"].clone()
                boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
                image, target = image.flip(2), {**target, "boxes": boxes}
            yield image, target


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW, whose decay spares the norms."""
    norms = [p for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm) for p in m.parameters()]
    spared = {id(p) for p in norms}
    rest = [p for p in model.parameters() if id(p) not in spared]
    return torch.optim.AdamW([{"params": rest, "weight_decay": DECAY}, {"params": norms, "weight_decay": 0.0}], lr=RATE)


def rate_factor(iteration: int, total: int) -> float:
    """Linear warm-up from a thousandth, times half a cosine."""
    rise = 1.0 if iteration >= WARMUP else 0.001 + 0.999 * iteration / WARMUP
    return rise * 0.5 * (1 + math.cos(math.pi * iteration / total))


def train(model: FasterRCNN, samples: list[Sample], iterations: int, seed: int, device: str) -> None:
    """All iterations of the recipe."""
    model.train()
    optimizer, source = optimizer_of(model), shuffled(samples, random.Random(seed))
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate_factor(iteration, iterations)
        images, targets = zip(*(next(source) for _ in range(BATCH)), strict=True)
        moved = [{name: value.to(device) for name, value in target.items()} for target in targets]
        losses = model([image.to(device) for image in images], moved)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()


@torch.no_grad()
def score(model: FasterRCNN, samples: list[Sample], coco: COCO, device: str) -> dict[str, float]:
    """AP and AP50 on a split."""
    model.eval()
    model.transform.min_size = (TEST_SIDE,)
    categories, results = sorted(coco.getCatIds()), []
    for image_id, (image, _) in zip(sorted(coco.getImgIds()), samples, strict=True):
        found = {name: value.cpu().numpy() for name, value in model([image.to(device)])[0].items()}
        found["boxes"][:, 2:] -= found["boxes"][:, :2]
        for box, label, value in zip(found["boxes"], found["labels"], found["scores"], strict=True):
            results.append(
                {
                    "image_id": image_id,
                    "category_id": categories[label - 1],
                    "bbox": box.tolist(),
                    "score": float(value),
                }
            )
    evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {"AP": float(evaluation.stats[0]), "AP50": float(evaluation.stats[1])}


def run(seed: int, norm: str, our_start: bool, iterations: int, device: str) -> dict[str, Any]:
    """Train with one seed and evaluate on both other splits."""
    torch.manual_seed(seed)
    sets = {split: COCO(DATA / "annotations" / f"instances_{split}.json") for split in ("train", "val", "test")}
    samples = {split: read(split, coco) for split, coco in sets.items()}
    began = time.perf_counter()
    model = build(norm, len(sets["train"].getCatIds()))
    if our_start:
        initialize_as_we_do(model)
    model.to(device)
    train(model, samples["train"], iterations, seed, device)
    seconds = time.perf_counter() - began
    scores = {split: score(model, samples[split], sets[split], device) for split in ("val", "test")}
    settings = {"seed": seed, "norm": norm, "our_start": our_start, "iterations": iterations}
    return {**settings, "training_seconds": seconds, **scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--norm", choices=sorted(NORMS), default="bn")
    parser.add_argument("--our-start", action="store_true", help="box head and predictor begin as ours do")
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, required=True, help="a JSON file with a list of runs")
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        runs.append(run(seed, arguments.norm, arguments.our_start, arguments.iterations, arguments.device))
        arguments.output.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
        print(runs[-1], flush=True)


if __name__ == "__main__":
    main()
