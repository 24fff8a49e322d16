"""Benchmarks of models, operators and data loading; comparison of a GPU with the CPU; the table of recipes.

May import reporting and below.
"""
