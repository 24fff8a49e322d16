"""The largest batch that training can meet, to see whether it fits into memory."""

import numpy as np

from ppdet_lite.data.coco import CocoDataset
from ppdet_lite.data.transforms import Augment, Batch, Preprocess, Sample, collate


def largest_batch(
    dataset: CocoDataset, preprocess: Preprocess, augment: Augment, batch_size: int, keep_original: bool = False
) -> Batch:
    """A batch of noise as large as any of a dataset's, with as many objects in each image as any image has.

    Of one image it is as large as the largest one. Of more, it has the tallest and the widest one, since an upright
    image and one that lies meet in a batch, if only once an epoch. No image is read.
    """
    sizes = np.unique(dataset.sizes, axis=0)
    short_side = max(augment.short_sides or (preprocess.short_side,))
    ratios = np.minimum(short_side / sizes.min(axis=1), preprocess.long_side / sizes.max(axis=1))
    resized = np.ceil(sizes * ratios[:, None] / preprocess.stride)
    chosen = resized.argmax(axis=0) if batch_size > 1 else [resized.prod(axis=1).argmax()]
    rng = np.random.default_rng(0)
    objects = int(dataset.object_counts.max())
    kinds = [_sample(rng, sizes[i], objects, preprocess, short_side, keep_original) for i in chosen]
    return collate([kinds[i % len(kinds)] for i in range(batch_size)], preprocess)


def _sample(
    rng: np.random.Generator,
    size: np.ndarray,
    objects: int,
    preprocess: Preprocess,
    short_side: int,
    keep_original: bool,
) -> Sample:
    """Noise of an image's size (h, w), as `train_sample` would make it of the image, with boxes anywhere."""
    original = rng.integers(0, 256, (*size, 3), np.uint8)
    image, scale = preprocess.resize(original, short_side)
    corners = rng.uniform(0, 1, (objects, 2, 2)) * image.shape[1::-1]
    sample = {
        "image": image,
        "image_id": 0,
        "image_size": np.array(image.shape[:2], np.float32),
        "scale": scale,
        "gt_boxes": np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32),
        "gt_classes": np.zeros(objects, np.int64),
        "gt_is_crowd": np.zeros(objects, bool),
    }
    return sample | ({"original_image": original, "flipped": False} if keep_original else {})
