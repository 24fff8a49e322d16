"""Faster implementations of operators for a CPU; `ops.dispatch` selects when they are used.

May import core, structures and ops.
"""
