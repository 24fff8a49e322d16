"""A trained detector for other places: the exported graph, and the predictor that runs it.

May import evaluation and below.
"""
