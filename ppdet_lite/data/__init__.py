"""Annotations and images, and how they become batches, without Paddle; importing the package registers the datasets.

May import config, storage and core.
"""

from ppdet_lite.data import coco, mixed

__all__ = ["coco", "mixed"]
