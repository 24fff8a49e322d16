"""Golden values of the operators: anchors, box coding, NMS, matching, RoIAlign, a ResNet-50."""

import inputs
import numpy as np
import torch
from torch import Tensor
from torchvision.models import resnet50
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou, clip_boxes_to_image, nms, roi_align
from torchvision.ops.poolers import LevelMapper

MARGIN = 1e-4  # least distance of an IoU from a threshold


def double(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).double()


def sampled(name: str, tensor: Tensor, count: int) -> dict[str, Tensor]:
    """Entries of `tensor` at inputs.positions(name), its mean and its standard deviation."""
    flat = tensor.detach().flatten()
    where = torch.from_numpy(inputs.positions(name, flat.numel(), count))
    return {name: flat[where], f"{name}/moments": torch.stack([flat.mean(), flat.std(correction=0)])}


def require(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(f"a decision is too near its boundary: {what}; choose another seed or name")


def away(values: Tensor, *boundaries: float, margin: float = MARGIN) -> bool:
    return all(bool(((values - b).abs() > margin).all()) for b in boundaries)


def anchors() -> dict[str, Tensor]:
    grids = [(inputs.PADDED[0] // s, inputs.PADDED[1] // s) for s in inputs.STRIDES]
    image = ImageList(torch.zeros(1, 3, *inputs.PADDED), [inputs.PADDED])
    features = [torch.zeros(1, 1, *grid, dtype=torch.float64) for grid in grids]
    out: dict[str, Tensor] = {}
    for kind in ("rounded", "exact"):
        generator = AnchorGenerator(tuple((s,) for s in inputs.SIZES), (inputs.RATIOS,) * 5)
        if kind == "exact":
            generator.cell_anchors = list(double(inputs.base_anchors()))
        out[f"anchors/{kind}/base"] = torch.stack([a.double() for a in generator.cell_anchors])
        (boxes,) = generator(image, features)
        for level, part in enumerate(boxes.split([h * w * 3 for h, w in grids])):
            out[f"anchors/{kind}/{level}"] = part[inputs.positions(f"anchors/{level}", len(part), 24)]
    out["anchors/counts"] = torch.tensor([h * w * 3 for h, w in grids])
    return out


def boxes() -> dict[str, Tensor]:
    reference, other = (
        double(inputs.boxes("coder/a", 40, (200, 300), (4, 200))),
        double(inputs.boxes("coder/b", 40, (200, 300), (4, 200))),
    )
    out: dict[str, Tensor] = {}
    for kind, weights in (("unit", (1.0,) * 4), ("scaled", (10.0, 10.0, 5.0, 5.0))):
        coder = BoxCoder(weights)
        out[f"coder/{kind}/encode"] = coder.encode_single(other, reference)
        deltas = double(inputs.uniform("coder/deltas", (40, 12), -6, 6)) * torch.tensor(weights).repeat(3)
        out[f"coder/{kind}/decode"] = coder.decode_single(deltas, reference)
    crowded = double(inputs.boxes("nms", 300, (90, 120), (20, 60)))
    out["iou"] = box_iou(crowded[:40], crowded[40:80])
    out["clip"] = clip_boxes_to_image(reference, (150, 220))
    return out


def suppression() -> dict[str, Tensor]:
    name = "nms"
    candidates = inputs.boxes(name, 300, (90, 120), (20, 60))
    groups = torch.from_numpy(inputs.uniform(f"{name}/groups", (300,), 0, 4).astype(np.int64))
    candidates, scores = double(candidates), double(inputs.distinct_scores(f"{name}/scores", 300))
    overlaps = box_iou(candidates, candidates)
    out: dict[str, Tensor] = {}
    for threshold in (0.3, 0.5, 0.7):
        require(away(overlaps, threshold, margin=1e-6), f"nms at {threshold}")
        out[f"nms/{threshold}"] = nms(candidates, scores, threshold)
        out[f"batched_nms/{threshold}"] = batched_nms(candidates, scores, groups, threshold)
    return out


def matching() -> dict[str, Tensor]:
    objects, candidates = map(double, inputs.matching_case())
    quality = box_iou(objects, candidates)
    require(away(quality, 0.3, 0.7), "matching")
    ordered = quality.sort(dim=0, descending=True)[0]
    require(bool(((ordered[0] > ordered[1]) | (ordered[0] == 0)).all()), "a box with two best objects")
    return {
        "matching/low_quality": Matcher(0.7, 0.3, allow_low_quality_matches=True)(quality),
        "matching/plain": Matcher(0.5, 0.5, allow_low_quality_matches=False)(quality),
        "matching/iou": quality.max(dim=1)[0],
    }


def pooling() -> dict[str, Tensor]:
    source, rois, counts = inputs.roi_align_case()
    rois = list(double(rois).split(counts.tolist()))
    out: dict[str, Tensor] = {}
    for ratio in (2, -1):
        for aligned in (False, True):
            name = f"roi_align/{ratio}/{'aligned' if aligned else 'legacy'}"
            leaf = double(source).requires_grad_()
            pooled = roi_align(leaf, rois, 3, 0.25, ratio, aligned)
            out[name] = pooled.detach()
            for part in ("large", "tiny"):
                cotangent = double(inputs.roi_align_cotangent(part))
                (gradient,) = torch.autograd.grad(pooled, leaf, cotangent, retain_graph=True)
                out |= sampled(f"{name}/gradient/{part}", gradient, 300)

    maps, rois, counts = inputs.pyramid_case()
    per_image = list(double(rois).split(counts.tolist()))
    levels = LevelMapper(2, 5)(per_image)
    out["pyramid/levels"] = levels
    for ratio in (2, -1):
        pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 3, ratio)
        named = {str(i): double(m) for i, m in enumerate(maps)}
        out[f"pyramid/{ratio}/legacy"] = pool(named, per_image, [(512, 640)] * 2)
        out[f"pyramid/{ratio}/aligned"] = pool_aligned(list(named.values()), per_image, levels, 3, ratio)
    return out


def pool_aligned(maps: list[Tensor], per_image: list[Tensor], levels: Tensor, size: int, ratio: int) -> Tensor:
    """MultiScaleRoIAlign with aligned=True, which torchvision's own cannot be told."""
    index = torch.cat([torch.full((len(b), 1), float(i)) for i, b in enumerate(per_image)]).double()
    rois = torch.cat([index, torch.cat(per_image)], dim=1)
    result = rois.new_zeros(len(rois), maps[0].shape[1], size, size)
    for level, source in enumerate(maps):
        rows = levels == level
        result[rows] = roi_align(source, rois[rows], size, 0.25 / 2**level, ratio, aligned=True)
    return result


def fill(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of inputs.weight, in double precision, in eval mode."""
    state = {k: double(inputs.weight(k, tuple(v.shape), seed)) for k, v in model.state_dict().items() if v.ndim}
    model.double().load_state_dict(state, strict=False)
    return model.eval()


def resnet50_features() -> dict[str, Tensor]:
    model = fill(resnet50(weights=None))
    x = double(inputs.uniform("resnet50/image", (1, 3, 64, 96)))
    out: dict[str, Tensor] = {}
    with torch.no_grad():
        x = model.maxpool(model.relu(model.bn1(model.conv1(x))))
        for level in (1, 2, 3, 4):
            x = getattr(model, f"layer{level}")(x)
            out |= sampled(f"resnet50/C{level + 1}", x, 256)
    return out


def everything() -> dict[str, Tensor]:
    return anchors() | boxes() | suppression() | matching() | pooling() | resnet50_features()
