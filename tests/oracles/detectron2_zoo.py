"""Writes detectron2_zoo.npz: detectron2's own C4, DC5 and FPN detectors on three pictures, with weights of cases.py.

In an environment of its own, with detectron2's source on the path (its operators need not be compiled: on a CPU
torchvision's serve), from the repository's root:
    python -m tests.oracles.detectron2_zoo CONFIGS
CONFIGS is the folder `configs` of detectron2's repository. Everything is detectron2's own, its resizing by Pillow and
its way back to the picture included; only sizes and the number of proposals are smaller. Computed in float32.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model

from tests.goldens import inputs
from tests.oracles import cases

MODELS = {name: f"COCO-Detection/faster_rcnn_R_50_{name}_1x" for name in ("C4", "DC5", "FPN")}
SEED = 3


def build(configs: Path, name: str) -> torch.nn.Module:
    """detectron2's own model of a config, in evaluation mode, with seeded weights."""
    config = get_cfg()
    config.merge_from_file(str(configs / f"{MODELS[name]}.yaml"))
    config.MODEL.DEVICE, config.MODEL.WEIGHTS = "cpu", ""
    config.MODEL.ROI_HEADS.NUM_CLASSES = cases.NUM_CLASSES - 1
    config.MODEL.RPN.PRE_NMS_TOPK_TEST, config.MODEL.RPN.POST_NMS_TOPK_TEST = cases.D2_PRE_NMS, cases.POST_NMS
    model = build_model(config).eval()
    state = {
        key: torch.from_numpy(cases.detectron2_weight(key, tuple(value.shape), SEED))
        for key, value in model.state_dict().items()
        if value.ndim and key not in ("pixel_mean", "pixel_std")
    }
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"pixel_mean", "pixel_std"}, (missing, unexpected)
    return model


def fed(picture: np.ndarray) -> dict[str, object]:
    """A picture, RGB, as detectron2's predictor feeds it: BGR, resized."""
    bgr = picture[:, :, ::-1]
    resized = ResizeShortestEdge(cases.MIN_SIZE, cases.MAX_SIZE).get_transform(bgr).apply_image(bgr)
    tensor = torch.as_tensor(resized.astype("float32").transpose(2, 0, 1))
    return {"image": tensor, "height": picture.shape[0], "width": picture.shape[1]}


@torch.no_grad()
def answers(model: torch.nn.Module, name: str) -> dict[str, np.ndarray]:
    """Per picture: the resized picture, features, proposals, detections."""
    out = {}
    for i, picture in enumerate(cases.pictures(SEED)):
        batch = [fed(picture)]
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features)
        found = model(batch)[0]["instances"]
        label = f"{name}/{i}"
        out[f"{label}/size"] = np.array(images.image_sizes[0], np.int32)
        for key, tensor in {"image": images.tensor, **features}.items():
            flat = tensor.numpy().ravel()
            sampled = flat[inputs.positions(f"{label}/{key}", flat.size, 64)]
            out[f"{label}/{key}"] = np.concatenate([[flat.mean(), flat.std()], sampled]).astype(np.float32)
        out[f"{label}/proposals"] = proposals[0].proposal_boxes.tensor.numpy()
        rows = [found.pred_classes.numpy()[:, None], found.scores.numpy()[:, None], found.pred_boxes.tensor.numpy()]
        out[f"{label}/detections"] = np.concatenate(rows, axis=1).astype(np.float32)
    return out


def main() -> None:
    out = {}
    for name in MODELS:
        out |= answers(build(Path(sys.argv[1]), name), name)
        found = [out[f"{name}/{i}/detections"] for i in range(3)]
        print(name, [len(f) for f in found], [f"{f[:, 1].min():.2f}..{f[:, 1].max():.2f}" for f in found], flush=True)
    path = Path(__file__).with_suffix(".npz")
    np.savez_compressed(path, **out)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
