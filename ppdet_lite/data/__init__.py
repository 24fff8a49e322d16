"""Datasets and batches, without Paddle; importing the package registers the datasets.

May import core, config and storage. Its rooms, each of which may import those before it: images, annotations, loading,
synthetic, importing, checking.
"""

from ppdet_lite.data.annotations import dataset, mixed

__all__ = ["dataset", "mixed"]
