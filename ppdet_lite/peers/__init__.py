"""Checkpoints of other projects: their files, their names for weights, and how their models differ from ours.

May import core, config and storage.
"""
