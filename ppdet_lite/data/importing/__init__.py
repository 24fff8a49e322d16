"""Imports annotations in other formats and writes them as COCO files.

May import core, config, storage, and the images and annotations directories of data.
"""
