"""The inputs of an exported graph, prepared from a batch."""

import numpy as np


def graph_inputs(
    images: np.ndarray,
    image_sizes: np.ndarray,
    scales: np.ndarray,
    original_sizes: np.ndarray | None,
    stride: int | None,
) -> dict[str, np.ndarray]:
    """Return a graph's inputs by name, float32. Arguments: see `Predictor.__call__`.

    image is padded with zeros, on the right and at the bottom, to multiples of the stride; None: it is not padded.

    im_shape contains image_sizes, plus the fraction of a pixel by which these were rounded if original_sizes are given.
    From that the graph computes both sizes exactly, see `export.Deployed`.
    """
    sizes = np.asarray(image_sizes, np.float64)
    if original_sizes is not None:
        # a side of 1 pixel may have been rounded up from any fraction
        smallest = np.where(sizes > 1, sizes - 0.499, 0.0)
        sizes = np.clip(np.multiply(original_sizes, scales, dtype=np.float64), smallest, sizes + 0.499)
    inputs = {"image": pad_images(images, stride or 1), "im_shape": sizes, "scale_factor": scales}
    return {name: np.ascontiguousarray(value, np.float32) for name, value in inputs.items()}


def pad_images(images: np.ndarray, stride: int) -> np.ndarray:
    """Pad images [N, 3, H, W] with zeros to multiples of the stride, at least one. They are not copied if they fit."""
    missing = [max(-(-size // stride), 1) * stride - size for size in images.shape[2:]]
    return np.pad(images, [(0, 0), (0, 0), *((0, count) for count in missing)]) if any(missing) else images
