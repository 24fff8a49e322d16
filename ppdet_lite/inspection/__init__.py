"""A detector looked into: where deformable parts look, and what time and memory it takes.

May import reporting and below.
"""
