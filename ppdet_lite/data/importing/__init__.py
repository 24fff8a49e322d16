"""Annotations in other formats, read with their places and written as COCO files.

May import core, config, storage and the rooms of data before it.
"""
