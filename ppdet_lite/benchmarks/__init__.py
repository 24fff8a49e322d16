"""Measurements: speed of models, operators and loading, a GPU compared with the CPU, and the table of recipes.

May import reporting and the rooms below it.
"""
