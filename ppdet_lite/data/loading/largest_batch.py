"""The largest batch that can occur in training, used to check that it fits into memory."""

import numpy as np

from ppdet_lite.data.annotations.dataset import CocoDataset
from ppdet_lite.data.loading.augment import Augment
from ppdet_lite.data.loading.transforms import Batch, Preprocess, Sample, collate


def largest_batch(
    dataset: CocoDataset, preprocess: Preprocess, augment: Augment, batch_size: int, keep_original: bool = False
) -> Batch:
    """Return a batch of noise as large as the largest one of a dataset, with the maximum number of objects per image.

    A batch of one image has the size of the largest image. A larger batch contains both the tallest and the widest
    image, because a portrait and a landscape image can end up in one batch, at least once per epoch. No image file is
    read.
    """
    sizes, ratios = _sizes_and_ratios(dataset, preprocess, augment)
    resized = np.ceil(sizes * ratios[:, None] / preprocess.stride)
    chosen = resized.argmax(axis=0) if batch_size > 1 else [resized.prod(axis=1).argmax()]
    rng = np.random.default_rng(0)
    objects = int(dataset.object_counts.max())
    samples = [_sample(rng, sizes[i], objects, preprocess, ratios[i], keep_original) for i in chosen]
    return collate([samples[i % len(samples)] for i in range(batch_size)], preprocess)


def _sizes_and_ratios(dataset: CocoDataset, preprocess: Preprocess, augment: Augment) -> tuple[np.ndarray, np.ndarray]:
    """Return sizes [S, 2] (h, w) before resizing, and for each the largest possible ratio [S] resized / original."""
    if augment.scale_jitter is not None:  # the network's input has one size
        return np.array([augment.scale_jitter.size]), np.ones(1)
    short, long = max(augment.short_sides or (preprocess.short_side,)), preprocess.long_side
    sizes = np.unique(dataset.sizes, axis=0)
    if augment.crop is not None:  # add the crop windows that are largest after resizing
        widest, narrowest = np.clip([long / short, short / long], *augment.crop.aspect)
        sizes = np.concatenate([sizes, np.rint([[short, short * widest], [short / narrowest, short]]).astype(int)])
    return sizes, np.minimum(short / sizes.min(axis=1), long / sizes.max(axis=1))


def _sample(
    rng: np.random.Generator,
    size: np.ndarray,
    objects: int,
    preprocess: Preprocess,
    ratio: float,
    keep_original: bool,
) -> Sample:
    """Return what `train_sample` returns for an image of the given size (h, w), with noise and random boxes."""
    original = rng.integers(0, 256, (*size, 3), np.uint8)
    image, scale = preprocess.rescale(original, float(ratio))
    corners = rng.uniform(0, 1, (objects, 2, 2)) * image.shape[1::-1]
    sample = {
        "image": image,
        "image_id": 0,
        "image_size": np.array(image.shape[:2], np.float32),
        "original_size": np.array(size, np.float32),
        "scale": scale,
        "gt_boxes": np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32),
        "gt_classes": np.zeros(objects, np.int64),
        "gt_is_crowd": np.zeros(objects, bool),
    }
    return sample | ({"original_image": original, "flipped": False} if keep_original else {})
