"""Faster implementations of operators for a CPU; `ops.dispatch` decides when they are used.

May import core and ops.
"""
