"""Annotations in other formats, read with their places and written as COCO files.

May import data, config, storage and core.
"""
