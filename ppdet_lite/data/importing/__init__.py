"""Imports annotations in other formats and writes them as COCO files.

May import core, config, storage, and all directories of data except checking.
"""
