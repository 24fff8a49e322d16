"""Datasets and batches, without Paddle. Importing the package registers the dataset classes.

May import core, config and storage. Its directories are images, annotations, loading, synthetic, importing and
checking; each may import those before it.
"""

from ppdet_lite.data.annotations import dataset, mixed

__all__ = ["dataset", "mixed"]
