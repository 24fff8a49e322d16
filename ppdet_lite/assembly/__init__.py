"""The schema of a config (`recipe`), and the functions that build datasets and models from it (`setup`).

May import optimization, modeling, data and below.
"""
