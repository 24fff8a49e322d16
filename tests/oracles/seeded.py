"""Weights and images that any environment makes alike: from a name and a shape, by NumPy alone.

The weights are those of no trained network, but a network has sane activations with them at any depth, deformable
layers look about half a pixel aside, and its detections have scores of all sizes. Names are the other project's.
"""

import zlib
from collections.abc import Mapping

import numpy as np

Shape = tuple[int, ...]
SIZES = ((192, 256), (256, 192), (224, 320))  # of the images, (h, w)

# What a name holds, and the spread of its weights: 1.4 keeps a signal's size through a ReLU.
SPREADS = (
    ("fpn_inner_", 0.7),
    ("fpn_res", 1.0),
    ("rpn_rois_score.weight", 1.0),
    ("rpn_rois_delta.weight", 0.1),
    ("bbox_score_stage", 0.8),
    ("bbox_score", 1.5),
    ("bbox_delta", 0.7),
    ("conv_offset.weight", 0.2),
)
CENTERED = ("bbox_score", "bbox_delta")  # each output blind to the mean of its inputs, as RoIs share it
LAST_NORMS = (".branch2c.norm.weight", ".branch2b.norm.weight")  # of a bottleneck, of a basic block


def draws(name: str, shape: Shape) -> np.ndarray:
    """Float64 numbers, nearly normal, that depend on the name alone; `random` is the plainest stream there is."""
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random((4, *shape))
    return (uniform.sum(axis=0) - 2.0) * np.sqrt(3.0)


def fill(shapes: Mapping[str, Shape]) -> dict[str, np.ndarray]:
    """Float32 weights for the named shapes."""
    return {name: weight(name, tuple(shape), shapes).astype(np.float32) for name, shape in shapes.items()}


def weight(name: str, shape: Shape, shapes: Mapping[str, Shape]) -> np.ndarray:
    """One weight: statistics and scales of norms around 0 and 1, the others so that signals keep their size."""
    noise = draws(name, shape)
    if name.endswith("_variance"):
        return 1.0 + 0.4 * np.tanh(noise)
    if name.endswith(("_mean", ".bias")):
        return 0.1 * noise
    if len(shape) == 1:
        return (1.0 + 0.3 * np.tanh(noise)) * (0.15 if _is_last_norm(name, shapes) else 1.0)
    inputs = shape[0] if len(shape) == 2 else int(np.prod(shape[1:]))
    spread = next((value for part, value in SPREADS if part in name), np.sqrt(2.0))
    if "bbox_score_stage" in name and "bbox_head.head.0.fc7.weight" not in shapes:
        spread = 2.5  # convolutions with group norms give smaller features
    noise = noise - noise.mean(axis=0) if any(part in name for part in CENTERED) else noise
    return noise * spread / np.sqrt(inputs)


def _is_last_norm(name: str, shapes: Mapping[str, Shape]) -> bool:
    """Whether a norm ends the branch of a residual block: 2c of a bottleneck, else 2b."""
    if name.endswith(LAST_NORMS[0]):
        return True
    return name.endswith(LAST_NORMS[1]) and name.replace("branch2b", "branch2c") not in shapes


def image(number: int) -> np.ndarray:
    """Float32 [1, 3, h, w], smooth, of about unit variance, as a normalized photograph is."""
    height, width = SIZES[number]
    picture = np.zeros((3, height, width))
    for cells in (4, 8, 16, 32):
        coarse = draws(f"image {number} of {cells}", (3, cells, cells))
        rows, columns = (np.minimum(np.arange(side) * cells / side, cells - 1) for side in (height, width))
        picture += _bilinear(coarse, rows, columns)
    return (picture / picture.std())[None].astype(np.float32)


def places(name: str, shape: Shape, count: int = 64) -> np.ndarray:
    """Flat positions, where a big array is looked at."""
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random(count)
    return np.floor(uniform * np.prod(shape)).astype(np.int64)


def _bilinear(coarse: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    bottom, right = (np.minimum(first + 1, coarse.shape[1] - 1) for first in (top, left))
    down, across = (rows - top)[:, None], (columns - left)[None]
    upper = coarse[:, top][:, :, left] * (1 - across) + coarse[:, top][:, :, right] * across
    lower = coarse[:, bottom][:, :, left] * (1 - across) + coarse[:, bottom][:, :, right] * across
    return upper * (1 - down) + lower * down
