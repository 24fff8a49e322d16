"""COCO annotation files: read, repaired, checked, counted, and several mixed into one dataset.

May import core, config and data.images.
"""
