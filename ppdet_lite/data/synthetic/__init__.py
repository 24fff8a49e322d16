"""The synthetic dataset of shapes on which the quickstart trains.

May import core.
"""
