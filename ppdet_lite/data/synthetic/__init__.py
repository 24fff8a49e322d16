"""The synthetic dataset of shapes that the quickstart trains on.

May import core.
"""
