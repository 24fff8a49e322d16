"""Checks of datasets: problems are counted and listed, and repaired where possible.

May import core, config, storage, and the other directories of data.
"""
