"""From images and annotations to batches: augmentation, resizing, and loading by threads.

May import core, config, data.images and data.annotations.
"""
