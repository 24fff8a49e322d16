"""Batches from images and annotations: augmentation, resizing, and loading in threads.

May import core, config, storage, data.images and data.annotations.
"""
