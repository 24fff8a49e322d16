"""The synthetic dataset of shapes on which the quickstart trains.

May import core, config, storage, and the directories images, annotations and loading of data.
"""
