"""Checks of datasets: problems are counted and listed, and repaired where possible.

May import core, storage, data.images and data.annotations.
"""
