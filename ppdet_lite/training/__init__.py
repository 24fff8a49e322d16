"""The training loop: a run's plan, its steps, its state, and what it tells.

May import inspection and below; the tools alone import it.
"""
