"""Writes torchvision.npz: what torchvision computes from the inputs of inputs.py.

Made with Python 3.11, numpy 2.4.6, torch 2.14.1 and torchvision 0.29.1 on a CPU. Run it from anywhere:
    pip install torch torchvision && python make_torchvision.py [--search N]
Everything is computed in float64 and stored in float32, so the values carry no rounding of torchvision's own. Wherever
the result is a decision (a match, a suppression, an order), the script checks that no input lies so near to the
boundary that float32 could decide otherwise. `--search N` lists those of N seeds for the whole model that pass.
"""

import sys
from pathlib import Path

import inputs
import numpy as np
import torch
import torchvision
import torchvision_model as model
import torchvision_ops as ops
from torchvision.ops import box_iou

SEED = 15  # of the whole model's weights and images


def search(count: int) -> None:
    for seed in range(count):
        detector = model.detector(seed)
        with torch.no_grad():
            features = detector.backbone(ops.double(inputs.model_images(seed)))
        said = model.answer(detector, features)
        if not model.unstable(detector, features, said):
            pairs = zip(model.targets("full"), said.proposals, strict=True)
            overlaps = [box_iou(target["boxes"], proposals).max().item() for target, proposals in pairs]
            print(seed, "detections", [len(d["boxes"]) for d in said.detections], "best IoU of a proposal", overlaps)


def main() -> None:
    if sys.argv[1:2] == ["--search"]:
        return search(int(sys.argv[2]))
    out = ops.everything() | model.everything(SEED)
    arrays = {k: v.numpy().astype(np.float32 if v.is_floating_point() else np.int32) for k, v in out.items()}
    arrays["fingerprint"] = np.array(inputs.fingerprint())
    arrays["versions"] = np.array([torch.__version__, torchvision.__version__, np.__version__])
    path = Path(__file__).with_name("torchvision.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
