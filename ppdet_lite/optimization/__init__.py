"""How weights change: optimizers, learning-rate schedules, and the lengths that both are counted in.

May import modeling (its norms) and what that may import.
"""
