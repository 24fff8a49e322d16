"""Checkpoints of other projects, the peers: file formats, weight names, and the differences of their models.

May import core, config and storage.
"""
