"""Inputs of the torchvision oracles, keyed by name as in tests/goldens/inputs.py. Imports numpy alone."""

import numpy as np

from tests.goldens import inputs

# Classification networks: one batch through each.
BACKBONES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
)
BACKBONE_SAMPLES = 64

# Detectors: three pictures of which the first needs no scaling, the second is enlarged, the third made smaller. The
# padded size is a multiple of 64, where torchvision's coarsest anchors lie 64 pixels apart (else they do not).
NUM_CLASSES = 21  # with the background, torchvision's class 0
MIN_SIZE, MAX_SIZE, PADDED = 192, 256, (192, 256)
PICTURES = ((192, 256), (131, 187), (240, 300))  # (h, w)
PRE_NMS, POST_NMS = 100, 30
GROUND_TRUTH = (
    ([[188.3, 70.7, 249.4, 98.9], [101.6, 40.2, 151.9, 138.3], [107.2, 127.6, 158.1, 156.3]], [1, 20, 7]),
    ([[31.3, 93.1, 49.8, 128.2], [147.3, 51.9, 170.6, 77.8]], [12, 3]),
    ([[154.9, 190.3, 239.1, 226.2]], [5]),
)
"""Per picture: boxes [G, 4] in its own pixels, classes [G]. Some lie where v1 proposes boxes."""
DETECTOR_GAINS = ((".conv3.", 0.35), ("fpn.inner_blocks", 3), ("cls_score", 3))  # times those of inputs.GAINS
GRADIENTS = (
    "backbone.body.layer2.0.conv2.weight",
    "backbone.fpn.layer_blocks.0.0.weight",
    "rpn.head.bbox_pred.weight",
    "roi_heads.box_head.fc6.weight",
    "roi_heads.box_predictor.bbox_pred.weight",
)


def backbone_weight(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a classification network's state. The residual branches end small, so that activations stay O(1)."""
    last = "conv2" if model in ("resnet18", "resnet34") else "conv3"
    return inputs.weight(name, shape) * np.float32(0.35 if last in name else 1)


def backbone_images() -> np.ndarray:
    """[2, 3, 96, 128], as if normalized."""
    return inputs.uniform("backbones/images", (2, 3, 96, 128), -2, 2)


def detector_weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A tensor of a detector's state. Few classes are probable, so that detections are fewer than the limit."""
    gain = next((g for part, g in DETECTOR_GAINS if part in name and name.endswith("weight")), 1)
    return inputs.weight(name, shape, seed) * np.float32(gain)


def pictures(seed: int) -> list[np.ndarray]:
    """uint8 [h, w, 3] RGB per entry of PICTURES: coarse blobs and fine noise."""
    out = []
    for i, (height, width) in enumerate(PICTURES):
        picture = np.full((height, width, 3), 128.0)
        for cell, gain in ((32, 60), (8, 35), (1, 20)):
            coarse = inputs.uniform(f"{seed}/picture/{i}/{cell}", (-(-height // cell), -(-width // cell), 3))
            picture += gain * coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
        out.append(picture.round().clip(0, 255).astype(np.uint8))
    return out


D2_PRE_NMS = 300
DETECTRON2_GAINS = (
    (".conv3.", 0.35),
    ("fpn_lateral", 0.3),
    ("fpn_output", 0.5),
    ("cls_score", 3),
    ("objectness", 0.5),
    ("anchor_deltas", 0.3),
)


def detectron2_weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A tensor of a detectron2 detector's state; its stem takes pixels of 0..255."""
    gain = next((g for part, g in DETECTRON2_GAINS if part in name and name.endswith("weight") and len(shape) > 1), 1)
    return inputs.weight(name, shape, seed) * np.float32(gain / (57 if "stem.conv1.weight" in name else 1))
