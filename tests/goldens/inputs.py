"""Inputs of the golden values: everything random comes from numpy, keyed by a name, so that only outputs need storing.

Imports numpy alone. Both make_torchvision.py (where torchvision is) and the tests (where Paddle is) call it.
All draws are uniform: `Generator.random` is the plainest stream there is, and `fingerprint` tells when it has changed.
"""

import zlib
from pathlib import Path

import numpy as np

SIZES = (32, 64, 128, 256, 512)
RATIOS = (0.5, 1.0, 2.0)  # height / width
STRIDES = (4, 8, 16, 32, 64)
NUM_CLASSES = 3  # objects, without the background

# The whole model: two images of unlike size, padded to a multiple of 64 so that every level divides exactly.
PADDED = (192, 256)
IMAGE_SIZES = ((180, 232), (146, 256))
HIDDEN = 128  # width of fc6 and fc7
PRE_NMS, POST_NMS, RPN_NMS = 120, 60, 0.5
SCORE_THRESHOLD, BOX_NMS, DETECTIONS = 0.05, 0.5, 80

GROUND_TRUTH = {
    "full": (
        ([[21.3, 15.7, 92.4, 77.9], [101.6, 40.2, 151.9, 138.3], [150.7, 97.1, 229.4, 141.8]], [0, 2, 1]),
        ([[60.0, 30.0, 150.0, 120.0]], [2]),
    ),
    "one_empty": (
        ([], []),
        ([[33.8, 20.6, 82.1, 105.4], [120.0, 50.0, 144.0, 74.0]], [1, 0]),
    ),
}
"""case -> per image (boxes [G, 4], classes [G] in 0..NUM_CLASSES-1)."""


def uniform(name: str, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """Float32 numbers in [low, high) that depend on `name` alone."""
    draws = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
    return (low + (high - low) * draws).astype(np.float32)


def positions(name: str, size: int, count: int) -> np.ndarray:
    """`count` flat indices into a tensor of `size` entries; where a big tensor is sampled."""
    draws = np.random.default_rng(zlib.crc32(name.encode())).random(count)
    return (draws * size).astype(np.int64)


def fingerprint() -> int:
    """A checksum that changes if numpy's generator ever does."""
    return zlib.crc32(uniform("fingerprint", (1000,)).tobytes())


def load() -> dict[str, np.ndarray]:
    """The golden values, by name; an error if the inputs are no longer those that they were made from."""
    with np.load(Path(__file__).with_name("torchvision.npz")) as archive:
        arrays = dict(archive)
    if arrays["fingerprint"] != fingerprint():
        raise RuntimeError(
            "numpy's random stream has changed: remake tests/goldens/torchvision.npz (see README.md there)"
        )
    return arrays


def boxes(name: str, count: int, extent: tuple[float, float], sizes: tuple[float, float]) -> np.ndarray:
    """[count, 4] boxes with centers inside `extent` (h, w) and side lengths spread evenly in log scale over `sizes`."""
    center = uniform(f"{name}/centre", (count, 2), 0, 1) * np.array(extent[::-1], np.float32)
    low, high = np.log(sizes)
    half = 0.5 * np.exp(uniform(f"{name}/size", (count, 2), low, high))
    return np.concatenate([center - half, center + half], axis=1).astype(np.float32)


def distinct_scores(name: str, count: int) -> np.ndarray:
    """[count] scores in (0, 1), shuffled and evenly spaced: no ties, no near ties."""
    order = np.argsort(uniform(name, (count,)), kind="stable")
    return ((order + 0.5) / count).astype(np.float32)


def base_anchors() -> np.ndarray:
    """[levels, ratios, 4] anchors around the origin, not rounded: area size**2, height / width = ratio."""
    roots = np.sqrt(np.array(RATIOS))
    halves = 0.5 * np.array(SIZES)[:, None, None] * np.stack([1 / roots, roots], axis=1)[None]
    return np.concatenate([-halves, halves], axis=2)


def matching_case() -> tuple[np.ndarray, np.ndarray]:
    """Ground truth [9, 4] and boxes [216, 4] on whole pixels, so that IoUs and their ties are exact.

    Object 0: best IoU exactly 0.5. Object 1: two ties for its best, above the threshold. Object 2: four mirrored ties,
    below it. Object 3: overlaps hardly anything. Object 5's best box lies better on object 4. Objects 6-8 overlap one
    another, amid random boxes.
    """
    objects = [[0, 0, 40, 40], [100, 0, 150, 60], [200, 20, 240, 60], [60, 400, 68, 410]]
    objects += [[300, 300, 440, 440], [330, 330, 400, 400], [500, 100, 560, 180], [520, 110, 600, 170]]
    objects = np.array([*objects, [505, 130, 535, 220]], np.float32)
    crafted = [
        [0, 0, 20, 40],
        [0, 20, 40, 40],
        [10, 0, 30, 30],
        [102, 0, 152, 60],
        [100, 0, 150, 58],
        [100, 2, 150, 60],
    ]
    crafted += [[200 + dx, 20 + dy, 240 + dx, 60 + dy] for dx, dy in ((8, 0), (-8, 0), (0, 8), (0, -8), (9, 9))]
    crafted += [[50, 390, 90, 430], [340, 300, 440, 400], [302, 303, 441, 444], [700, 0, 720, 30]]
    jitter = np.round(uniform("matching/jitter", (201, 4), -22, 22))
    return objects, np.concatenate([crafted, np.tile(objects[6:], (67, 1)) + jitter]).astype(np.float32)


# RoIs for one map of 13 x 17 at stride 4 (an image of 52 x 68): inside, over each border, outside, tiny, everything.
ROI_MAP = (2, 5, 13, 17)
EDGE_ROIS = np.array(
    [
        [8, 8, 40, 32],
        [-10, 5, 20, 30],
        [50, 30, 80, 60],
        [-6, -9, 75, 58],
        [10, -12, 30, 9],
        [33.3, 21.7, 34.1, 22.9],
        [66, 50, 70, 54],
        [0, 0, 68, 52],
        [80, 60, 90, 75],
        [3.7, 41.2, 29.9, 51.9],
    ],
    np.float32,
)


def roi_align_case() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map [2, 5, 13, 17], boxes [20, 4] and counts [2] (first all of EDGE_ROIS, then random ones)."""
    random = boxes("roi_align", 10, (52, 68), (3, 60))
    return uniform("roi_align/map", ROI_MAP), np.concatenate([EDGE_ROIS, random]), np.array([10, 10], np.int32)


def roi_align_cotangent(part: str) -> np.ndarray:
    """Gradient [20, 5, 3, 3] of the pooled values: zero but for `tiny` RoIs (a side below one cell) or `large` ones."""
    corners = roi_align_case()[1].reshape(-1, 2, 2)
    is_tiny = (corners[:, 1] - corners[:, 0]).min(axis=1) < 4
    return uniform("roi_align/cotangent", (20, 5, 3, 3)) * (is_tiny == (part == "tiny"))[:, None, None, None]


def pyramid_case() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Maps of strides 4..32 for two images of 512 x 640, boxes [44, 4] of all sizes and counts [2]."""
    maps = [uniform(f"pyramid/{s}", (2, 3, 512 // s, 640 // s)) for s in STRIDES[:4]]
    exact = np.array([[10, 20, 10 + s, 20 + s] for s in (111.99, 112, 224, 223.98, 448, 447.9)], np.float32)
    random = boxes("pyramid", 38, (512, 640), (25, 700))
    return maps, np.concatenate([random, exact]), np.array([20, 24], np.int32)


def model_images(seed: int) -> np.ndarray:
    """[2, 3, 192, 256] "normalized" images: coarse blobs and fine noise; zero where padded."""
    images = np.zeros((2, 3, *PADDED), np.float32)
    for i, (height, width) in enumerate(IMAGE_SIZES):
        for cell, gain in ((32, 1.5), (8, 1.0), (1, 0.7)):
            coarse = uniform(f"{seed}/image/{i}/{cell}", (3, -(-height // cell), -(-width // cell)))
            fine = coarse.repeat(cell, axis=1).repeat(cell, axis=2)
            images[i, :, :height, :width] += gain * fine[:, :height, :width]
    return images


def model_rois() -> tuple[np.ndarray, np.ndarray]:
    """40 RoIs inside the two images, 22 + 18, and their counts."""
    per_image = [
        np.clip(boxes(f"rois/{i}", n, size, (8, 230)), 0, [*size[::-1], *size[::-1]])
        for i, (n, size) in enumerate(zip((22, 18), IMAGE_SIZES, strict=True))
    ]
    return np.concatenate(per_image).astype(np.float32), np.array([22, 18], np.int32)


# Standard deviation of a weight = gain / sqrt(fan in). Residual branches end small, so activations stay O(1);
# the last layers are wide, so that scores and boxes spread.
GAINS = (
    (".downsample.", 1.0),
    ("conv3", 1.0),
    ("layer", 1.4),
    ("fpn.inner", 0.35),
    ("fpn.layer", 1.0),
    ("rpn.head.conv", 1.4),
    ("rpn.head.cls_logits", 1.5),
    ("rpn.head.bbox_pred", 0.25),
    ("box_head", 2.0),
    ("cls_score", 1.5),
    ("box_predictor.bbox_pred", 0.6),
)


def weight(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """The tensor called `name` in torchvision's state_dict, in torch's layout (Linear is [out, in]).

    Norms: weight 1 +- 0.1, bias +- 0.1, running_mean +- 0.2, running_var 1 +- 0.3. Other biases +- 0.1.
    """
    draws = uniform(f"{seed}/{name}", shape)
    if name.endswith("running_var"):
        return (1 + 0.3 * draws).astype(np.float32)
    if name.endswith("running_mean"):
        return 0.2 * draws
    if name.endswith("bias"):
        return 0.1 * draws
    if len(shape) == 1:
        return (1 + 0.1 * draws).astype(np.float32)
    draws -= draws.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    gain = next((g for part, g in GAINS if part in name), 1.8)
    return (gain * np.sqrt(3.0 / np.prod(shape[1:])) * draws).astype(np.float32)
