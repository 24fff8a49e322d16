"""The training loop: a run, its steps, its state in checkpoints, and the records of its measurements.

May import reporting and below.
"""
