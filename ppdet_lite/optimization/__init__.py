"""Optimizers, learning-rate schedules, and the durations in which schedules are specified.

May import modeling (for its norms) and the packages that modeling may import.
"""
