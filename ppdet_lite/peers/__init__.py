"""Checkpoints of other projects: their file formats, their weight names, and the differences of their models.

May import core, config and storage.
"""
