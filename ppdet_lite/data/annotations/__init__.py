"""COCO annotation files: reading, repairing, checking and counting them, and mixing several into one dataset.

May import core, config, storage and data.images.
"""
